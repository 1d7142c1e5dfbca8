//! Runs the examples of the pages: what a page shows is what its commands print.
//!
//! A block with a file name is that file, or must be its content if a command has written it. A block of type `console` has
//! commands behind `$`, and what they print. Commands that need AWS, a cluster or Docker are replaced, see [`STUBS`].

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{HOST, shell};

/// Programs that stand in for others, or pass what needs no cluster on to them.
const STUBS: [(&str, &str); 4] = [
    ("aws", "exit 0"),
    ("docker", "exit 0"),
    (
        "helm",
        r#"case $1 in
  install | upgrade) [ "$1" = upgrade ] && shift; shift; exec "$0" template "$@" >/dev/null ;;
  *) PATH=${PATH#*:} exec helm "$@" ;;
esac"#,
    ),
    (
        "kubectl",
        r#"case "$1 $2" in
  "apply -k") PATH=${PATH#*:} exec kubectl kustomize "$3" >/dev/null ;;
  "apply -f" | "create namespace" | "run web") exit 0 ;;
  *) PATH=${PATH#*:} exec kubectl "$@" ;;
esac"#,
    ),
];

struct Block {
    language: String,
    file: Option<String>,
    text: String,
}

fn page(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/mirror").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn blocks(page: &str) -> Vec<Block> {
    let (mut blocks, mut lines) = (Vec::new(), page.lines());
    while let Some(line) = lines.next() {
        if let Some(info) = line.strip_prefix("```") {
            let mut info = info.split(' ');
            let language = info.next().unwrap().to_owned();
            let text = lines.by_ref().take_while(|line| *line != "```").map(|line| format!("{line}\n")).collect();
            blocks.push(Block { language, file: info.next().map(str::to_owned), text });
        }
    }
    blocks
}

/// The commands of a console, and what each prints.
fn commands(console: &str) -> Vec<(String, String)> {
    let mut commands: Vec<(String, String)> = Vec::new();
    for line in console.lines() {
        let is_continued =
            commands.last().is_some_and(|(command, output)| command.ends_with('\\') && output.is_empty());
        match (line.strip_prefix("$ "), commands.last_mut()) {
            (Some(command), _) => commands.push((command.to_owned(), String::new())),
            (None, Some((command, _))) if is_continued => write!(command, "\n{line}").unwrap(),
            (None, Some((_, output))) => writeln!(output, "{line}").unwrap(),
            (None, None) => panic!("a console begins with a command: {line}"),
        }
    }
    commands
}

fn check(name: &str) {
    let english = blocks(&page(&format!("{name}.md")));
    let chinese = blocks(&page(&format!("{name}.zh.md")));
    let code = |blocks: &[Block]| blocks.iter().map(|block| block.text.clone()).collect::<Vec<_>>();
    assert_eq!(code(&english), code(&chinese), "the code on both pages is the same");

    let directory = tempfile::tempdir().unwrap();
    let stubs = directory.path().join(".stubs");
    fs::create_dir(&stubs).unwrap();
    for (program, script) in STUBS {
        let path = stubs.join(program);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    // One shell for the whole page, because it can set variables.
    let (mut script, mut expected) = (String::new(), Vec::new());
    for (index, Block { language, file, text }) in english.iter().enumerate() {
        match (file, language.as_str()) {
            (Some(file), _) => {
                let content = directory.path().join(format!(".block{index}"));
                fs::write(&content, text).unwrap();
                let content = content.display();
                writeln!(script, "mkdir -p \"$(dirname '{file}')\"").unwrap();
                writeln!(script, "[ -e '{file}' ] || cp '{content}' '{file}'; diff '{content}' '{file}' || exit 1")
                    .unwrap();
            }
            (None, "console") => {
                for (command, output) in commands(text) {
                    let file = directory.path().join(format!(".output{}", expected.len()));
                    writeln!(script, "{{ {command}\n}} >'{0}' 2>&1 || {{ cat '{0}'; exit 1; }}", file.display())
                        .unwrap();
                    expected.push((command, output, file));
                }
            }
            _ => {}
        }
    }
    let output = shell(&script, directory.path()).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let shown = |file: &PathBuf| {
        fs::read_to_string(file).unwrap_or_default().replace(&directory.path().display().to_string(), ".")
    };
    for (command, expected, file) in expected {
        // A page that shows nothing leaves it out.
        let actual = shown(&file);
        assert!(actual == expected || expected.is_empty() && output.status.success(), "{command}\n{actual}\n{printed}");
    }
    assert!(output.status.success(), "{printed}");
}

#[test]
fn the_examples_for_files_work() {
    check("rewrite");
}

#[test]
fn the_examples_for_helm_work() {
    check("helm");
}

/// The commands of the workflow's jobs, in a repository with a manifest.
#[test]
fn the_workflow_of_the_page_works() {
    let file = Some(".github/workflows/mirror.yaml");
    let block = blocks(&page("rewrite.md")).into_iter().find(|block| block.file.as_deref() == file).unwrap();
    let workflow: Value = serde_yaml_ng::from_str(&block.text).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let run = |script: &str| {
        let output = shell(&format!("set -e\n{script}"), directory.path()).output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        (output.status.success(), printed)
    };
    let job = |name: &str| {
        let steps = workflow["jobs"][name]["steps"].as_array().unwrap().iter().filter_map(|step| step["run"].as_str());
        let steps: Vec<_> = steps.map(|step| format!("bash -e -c '{}'", step.replace('\'', r"'\''"))).collect();
        run(&format!("cd clone\n{}", steps.join("\n")))
    };
    let setup = "mkdir .stubs; printf '#!/bin/sh\\necho \"$@\"' >.stubs/gh; chmod +x .stubs/gh
        git init --quiet --bare origin; git init --quiet --initial-branch=main clone; cd clone
        git remote add origin ../origin; git config user.name x; git config user.email x@example.com
        mkdir deploy; echo 'image: nginx:1.27' >deploy/web.yaml; git add .; git commit --quiet --message x";
    assert_eq!(run(setup), (true, String::new()));
    let (succeeded, printed) = job("check");
    assert!(!succeeded && printed.starts_with("deploy/web.yaml:1: nginx:1.27 -> "), "{printed}");
    let (succeeded, printed) = job("change");
    assert!(succeeded && printed.contains("pr create --head mirror --fill"), "{printed}");
    let changed = run("git -C origin show mirror:deploy/web.yaml");
    assert_eq!(changed, (true, format!("image: {HOST}/dockerhub/nginx:1.27\n")));
    assert_eq!([job("check"), job("change")], [(true, String::new()), (true, String::new())]);
}

#[test]
fn the_examples_for_kubernetes_work() {
    check("kubernetes");
}

#[test]
fn the_examples_for_kustomize_work() {
    check("kustomize");
}

#[test]
fn the_examples_for_ecs_work() {
    check("ecs");
}

#[test]
fn the_examples_for_docker_work() {
    check("docker");
}
