//! The command on files: what it prints, what it changes, and its exit codes.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::{HOST, shell};

/// A directory with files.
fn directory(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(directory.path().join(name), content).unwrap();
    }
    directory
}

/// The exit code, standard output and standard error of `ecr-transfer mirror …`, with `…` for the mirror's host.
fn run(directory: &TempDir, arguments: &str, input: &str) -> (i32, String, String) {
    let mut command = shell(&format!("ecr-transfer mirror {arguments}"), directory.path());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A command that does not read its input may have ended.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap().replace(HOST, "…");
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn content(directory: &TempDir, file: &str) -> String {
    fs::read_to_string(directory.path().join(file)).unwrap().replace(HOST, "…")
}

const BEFORE: &str = "image: nginx:1.27\n";
const AFTER: &str = "image: …/dockerhub/nginx:1.27\n";
const OTHER: &str = "a: 1\nimage: other\n";
const REPORT: &str = "a.yaml:2: other: the repository docker.io/library/other is not mirrored\n";

#[test]
fn standard_input_is_rewritten_to_standard_output() {
    let directory = directory(&[]);
    let stdin = |arguments, input| run(&directory, arguments, input);
    assert_eq!(stdin("rewrite", BEFORE), (0, AFTER.into(), String::new()));
    assert_eq!(stdin("rewrite -", BEFORE), (0, AFTER.into(), String::new()));
    let report = REPORT.replace("a.yaml", "standard input");
    assert_eq!(stdin("rewrite", OTHER), (0, OTHER.into(), report.clone()));
    assert_eq!(stdin("rewrite --strict", OTHER), (1, OTHER.into(), report));
    let from = "FROM …/dockerhub/nginx:1.27\n";
    assert_eq!(stdin("rewrite --type dockerfile", "FROM nginx:1.27\n"), (0, from.into(), String::new()));
    let error = "error: standard input: The file is not a manifest. For a Dockerfile, use \"mirror rewrite\" with --type dockerfile\n";
    assert_eq!(stdin("rewrite --check", "FROM nginx:1.27\n"), (2, String::new(), error.into()));
    let (code, stdout, stderr) = stdin("rewrite", "image: nginx:1.27\na: [\n");
    assert_eq!((code, stdout.as_str()), (2, ""), "{stderr}");
    assert!(stderr.starts_with("error: standard input: The file is not YAML: line 3, column 1: "), "{stderr}");
}

#[test]
fn a_file_is_printed_and_stays() {
    let directory = directory(&[("a.yaml", BEFORE), ("Dockerfile", "FROM nginx:1.27\n")]);
    assert_eq!(run(&directory, "rewrite a.yaml", ""), (0, AFTER.into(), String::new()));
    assert_eq!(content(&directory, "a.yaml"), BEFORE);
    let (code, stdout, _) = run(&directory, "rewrite Dockerfile", "");
    assert_eq!((code, stdout.as_str()), (0, "FROM …/dockerhub/nginx:1.27\n"));
}

#[test]
fn files_are_changed_in_place() {
    let directory = directory(&[("a.yaml", BEFORE), ("b.yaml", BEFORE), ("same.yaml", "a: 1\n")]);
    let path = |name: &str| directory.path().join(name);
    fs::set_permissions(path("b.yaml"), fs::Permissions::from_mode(0o640)).unwrap();
    symlink("b.yaml", path("link.yaml")).unwrap();
    let modified = fs::metadata(path("same.yaml")).unwrap().modified().unwrap();
    let inode = |name| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path(name)).unwrap());
    let same = inode("same.yaml");
    assert_eq!(run(&directory, "rewrite --in-place a.yaml link.yaml same.yaml", ""), (0, String::new(), String::new()));
    assert_eq!([content(&directory, "a.yaml"), content(&directory, "b.yaml")], [AFTER, AFTER]);
    assert_eq!(fs::metadata(path("b.yaml")).unwrap().permissions().mode() & 0o777, 0o640);
    assert!(fs::symlink_metadata(path("link.yaml")).unwrap().is_symlink());
    assert_eq!((inode("same.yaml"), fs::metadata(path("same.yaml")).unwrap().modified().unwrap()), (same, modified));
    let names: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 5, "{names:?}");
}

#[test]
fn a_file_keeps_its_owner_and_its_other_names() {
    let directory = directory(&[("a.yaml", BEFORE), ("b.yaml", BEFORE)]);
    let path = |name: &str| directory.path().join(name);
    fs::hard_link(path("a.yaml"), path("link.yaml")).unwrap();
    // Only root can give a file away.
    let _ = chown(path("b.yaml"), Some(1000), Some(1000));
    let owner = || fs::metadata(path("b.yaml")).map(|it| (it.uid(), it.gid())).unwrap();
    let before = owner();
    assert_eq!(run(&directory, "rewrite --in-place a.yaml b.yaml", ""), (0, String::new(), String::new()));
    assert_eq!(["a.yaml", "link.yaml", "b.yaml"].map(|name| content(&directory, name)), [AFTER; 3]);
    assert_eq!(owner(), before);
}

#[test]
fn what_the_shell_has_opened_is_read_and_never_changed() {
    let directory = directory(&[("a.yaml", BEFORE)]);
    let none = String::new();
    for arguments in ["rewrite <(cat a.yaml)", "rewrite /dev/stdin", "rewrite /dev/fd/3 3< a.yaml"] {
        assert_eq!(run(&directory, arguments, BEFORE), (0, AFTER.into(), none.clone()), "{arguments}");
    }
    assert_eq!(run(&directory, "helm-values <(cat a.yaml)", ""), (0, AFTER.into(), none.clone()));
    let list = |arguments| run(&directory, &format!("list {arguments}"), "");
    assert_eq!(list("--inventory <(cat .inventory.json)"), list("--inventory .inventory.json"));
    let (code, stdout, stderr) = run(&directory, "rewrite --in-place <(cat a.yaml)", "");
    assert_eq!((code, stdout), (2, none.clone()));
    assert!(stderr.ends_with(": It is not a regular file, so --in-place cannot change it\n"), "{stderr}");
    let (code, stdout, stderr) = run(&directory, "rewrite --in-place /dev/stdin", BEFORE);
    assert_eq!((code, stdout), (2, none));
    assert!(stderr.starts_with("error: --in-place cannot change standard input."), "{stderr}");
    let (code, _, stderr) = run(&directory, "rewrite <(cat /dev/zero)", "");
    assert_eq!(code, 2);
    assert!(stderr.ends_with(": The file has more than 64 MiB, which is not supported\n"), "{stderr}");
}

#[test]
fn what_is_not_a_regular_file_is_an_error() {
    let directory = directory(&[]);
    assert!(Command::new("mkfifo").arg(directory.path().join("pipe")).status().unwrap().success());
    for arguments in
        ["rewrite --check pipe", "rewrite --in-place pipe", "helm-values pipe", "kustomize pipe", "rewrite ."]
    {
        let (code, stdout, stderr) = run(&directory, arguments, "");
        assert_eq!((code, stdout.as_str()), (2, ""), "{arguments}");
        assert!(stderr.contains(": It is not a regular file. "), "{stderr}");
    }
}

#[test]
fn an_image_does_not_control_the_terminal() {
    let directory = directory(&[]);
    let (code, stdout, stderr) = run(&directory, "resolve --json 'a\u{7f}\u{9b}31m\u{202e}\u{1b}'", "");
    assert_eq!((code, stderr.as_str()), (1, ""));
    assert!(!stdout.contains(['\u{7f}', '\u{9b}', '\u{202e}', '\u{1b}']), "{stdout:?}");
    assert!(stdout.contains(r#""image": "a\u007f\u009b31m\u202e\u001b","#), "{stdout}");
}

#[test]
fn the_name_of_a_file_does_not_control_the_terminal() {
    let directory = directory(&[("a\u{1b}[31m\n.yaml", BEFORE)]);
    let change = "a\\u{1b}[31m\\n.yaml:1: nginx:1.27 -> …/dockerhub/nginx:1.27\n";
    assert_eq!(run(&directory, "rewrite --check *.yaml", ""), (1, change.into(), String::new()));
}

#[test]
fn a_check_changes_nothing_and_fails_if_an_image_would_change() {
    let directory = directory(&[("a.yaml", OTHER), ("b.yaml", BEFORE)]);
    let change = "b.yaml:1: nginx:1.27 -> …/dockerhub/nginx:1.27\n";
    assert_eq!(run(&directory, "rewrite --check a.yaml b.yaml", ""), (1, change.into(), REPORT.into()));
    assert_eq!(content(&directory, "b.yaml"), BEFORE);
    assert_eq!(run(&directory, "rewrite --check a.yaml", ""), (0, String::new(), REPORT.into()));
    assert_eq!(run(&directory, "rewrite --check --strict a.yaml", ""), (1, String::new(), REPORT.into()));
}

#[test]
fn a_check_prints_in_the_order_of_the_lines() {
    let directory = directory(&[("a.yaml", "- image: x\n- image: nginx:1.27\n- image: y\n")]);
    let (code, stdout, _) = run(&directory, "rewrite --check a.yaml 2>&1", "");
    let lines: Vec<_> = stdout.lines().map(|line| &line[..8]).collect();
    assert_eq!((code, lines), (1, vec!["a.yaml:1", "a.yaml:2", "a.yaml:3"]), "{stdout}");
}

#[test]
fn values_with_an_image_that_stays_fail_if_this_is_asked_for() {
    let directory = directory(&[("a.yaml", OTHER), ("b.yaml", BEFORE)]);
    for (arguments, code) in [("a.yaml", 0), ("--strict a.yaml", 1), ("--strict b.yaml", 0)] {
        assert_eq!(run(&directory, &format!("helm-values {arguments}"), "").0, code, "{arguments}");
    }
}

#[test]
fn a_file_that_cannot_be_read_stays_and_the_others_are_changed() {
    let broken = "image: nginx:1.27\na: {{ b }}: c\n";
    let directory = directory(&[("a.yaml", BEFORE), ("b.yaml", broken), ("c.yaml", BEFORE)]);
    fs::write(directory.path().join("binary"), b"image: \xff").unwrap();
    let (code, stdout, stderr) = run(&directory, "rewrite --in-place a.yaml b.yaml missing.yaml binary c.yaml", "");
    assert_eq!((code, stdout.as_str()), (2, ""));
    let lines: Vec<_> = stderr.lines().collect();
    assert!(lines[0].starts_with("error: b.yaml: The file is not YAML: line 2, column "), "{stderr}");
    assert!(lines[1].starts_with("error: missing.yaml: failed to open file `missing.yaml`: No such file"), "{stderr}");
    assert_eq!(
        lines[2],
        "error: binary: The file is not text in UTF-8: invalid utf-8 sequence of 1 bytes from index 7"
    );
    assert_eq!(lines[3], "error: 3 of 5 files were not read, and stay as they are");
    assert_eq!(["a.yaml", "b.yaml", "c.yaml"].map(|name| content(&directory, name)), [AFTER, broken, AFTER]);
}

#[test]
fn files_above_64_mib_are_refused() {
    let directory = directory(&[]);
    fs::File::create(directory.path().join("large.yaml")).unwrap().set_len((64 << 20) + 1).unwrap();
    let (code, _, stderr) = run(&directory, "rewrite large.yaml", "");
    assert_eq!(code, 2);
    assert_eq!(stderr, "error: large.yaml: The file has more than 64 MiB, which is not supported\n");
}

#[test]
fn arguments_that_contradict_each_other_are_errors() {
    let directory = directory(&[("a.yaml", BEFORE), ("b.yaml", BEFORE)]);
    for (arguments, expected) in [
        ("rewrite a.yaml b.yaml", "error: With several files, the result has no place."),
        ("rewrite --in-place -", "error: --in-place cannot change standard input."),
        ("rewrite --in-place", "error: the following required arguments were not provided"),
        ("rewrite --in-place --check a.yaml", "error: the argument '--in-place' cannot be used with '--check'"),
    ] {
        let (code, stdout, stderr) = run(&directory, arguments, "");
        assert_eq!((code, stdout.as_str()), (2, ""), "{arguments}");
        assert!(stderr.starts_with(expected), "{stderr}");
    }
    assert_eq!(content(&directory, "a.yaml"), BEFORE);
}

#[test]
fn kustomize_gets_the_names_that_are_safe_to_replace() {
    let directory = directory(&[]);
    let pod = "apiVersion: v1
kind: Pod
spec:
  containers:
  - image: docker.io/nginx:1.27
  - image: nginx:1.27
  - image: nginx:9
  - image: other
";
    let (code, stdout, stderr) = run(&directory, "kustomize", pod);
    let component = "apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\nimages:";
    let image = "\n- name: docker.io/nginx\n  newName: …/dockerhub/nginx\n";
    assert_eq!((code, stdout), (0, format!("{component}{image}")));
    assert_eq!(
        stderr,
        "standard input:7: nginx:9: the mirror of docker.io/library/nginx does not have the tag 9\n\
         standard input:8: other: the repository docker.io/library/other is not mirrored\n"
    );
    assert_eq!(run(&directory, "kustomize -", pod), run(&directory, "kustomize", pod));
    assert_eq!(run(&directory, "kustomize", "image: other\n").1, format!("{component} []\n"));
    let all = run(&directory, "kustomize --all", pod).1;
    for name in ["nginx", "index.docker.io/library/nginx", "quay.io/prometheus/node-exporter"] {
        assert!(all.contains(&format!("\n- name: {name}\n  newName: …/")), "{all}");
    }
}

#[test]
fn kustomize_without_images_says_what_it_needs() {
    let directory = directory(&[("kustomization.yaml", "resources: [a.yaml]\n")]);
    let advice = |directory| format!("Run: kubectl kustomize {directory} | ecr-transfer mirror kustomize");
    for (arguments, expected) in [
        ("kustomize", format!("The manifests have no images. {}\n", advice("DIRECTORY"))),
        ("kustomize kustomization.yaml", format!("The manifests have no images. {}\n", advice("DIRECTORY"))),
        ("kustomize .", format!(". is a directory. {}\n", advice("."))),
        ("kustomize --all a.yaml", "the argument '--all' cannot be used with '[FILES]...'\n".into()),
    ] {
        let (code, stdout, stderr) = run(&directory, arguments, "");
        assert_eq!((code, stdout.as_str()), (2, ""), "{arguments}");
        assert!(stderr.starts_with(&format!("error: {expected}")), "{stderr}");
    }
}
