//! The script of the copying task, from the template: it copies what [`encode`] writes, and refuses everything else.
//!
//! It runs in the shells that `/bin/sh` can be, with a `skopeo` that records its arguments.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRunner};
use shared::plan::{Image, RepositoryCopy};
use shared::reference::{Digest, Repository};
use shared::task::{CopyReport, encode};
use tempfile::TempDir;

/// `/bin/sh` in skopeo's image, and on Debian.
const SHELLS: [&str; 2] = ["bash", "dash"];
/// Records its arguments, separated by NULs, with an empty one at the end. Then it runs `THEN`.
const SKOPEO: &str = "#!/bin/sh\nprintf '%s\\0' \"$@\" '' >>\"$CALLS\"\neval \"$THEN\"\n";
/// It must not be visible in any process.
const SECRET: &str = "a-secret-of-the-task";
/// The timeout of each wait, long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// The exit code of a shell that SIGTERM ends.
const TERMINATED: i32 = 143;

#[test]
fn each_image_of_a_plan_is_copied_once() {
    let sandbox = Sandbox::new();
    let result = runner(40).run(&plan(), |plan| {
        let text = encode(&plan);
        let mut planned: Vec<_> =
            plan.iter().flat_map(|copy| copy.images.iter().map(|image| call(copy, image))).collect();
        planned.sort();
        prop_assert_eq!(parse(text.as_bytes()), Ok(planned));
        sandbox.agrees(text.as_bytes())
    });
    result.expect("it copies each image");
}

#[test]
fn a_changed_plan_is_refused_before_any_copy_starts() {
    let sandbox = Sandbox::new();
    let texts = (plan(), vec(edit(), 1..3))
        .prop_map(|(plan, edits)| edits.into_iter().fold(encode(&plan).into_bytes(), |text, edit| edit.apply(text)));
    runner(300).run(&texts, |text| sandbox.agrees(&text)).expect("it accepts only what encode can write");
}

#[test]
fn arbitrary_bytes_are_refused() {
    let sandbox = Sandbox::new();
    let texts = prop_oneof![vec(1..=u8::MAX, 0..200), "[>= \n0-9a-z./:-]{0,200}".prop_map(String::into_bytes)];
    runner(100).run(&texts, |text| sandbox.agrees(&text)).expect("it refuses them");
}

#[test]
fn the_script_and_the_types_accept_the_same_names() {
    let sandbox = Sandbox::new();
    // Valid characters in any order.
    let texts = ("[a-z0-9.:-]{1,7}", "[a-z0-9._/-]{1,7}", "[A-Za-z0-9_.-]{1,3}", "[0-9]{1,5}").prop_flat_map(
        |(host, name, tag, manifests)| {
            // One of them at a time: with more, nearly all texts would be invalid.
            select(vec![
                text(&format!("{host}/a"), "1", "1"),
                text(&format!("a.b/{name}"), "1", "1"),
                text("a.b/a", &tag, "1"),
                text("a.b/a", "1", &manifests),
            ])
        },
    );
    runner(300).run(&texts, |text| sandbox.agrees(text.as_bytes())).expect("both have one grammar");
}

#[test]
fn the_script_and_the_types_have_the_same_limits() {
    let sandbox = Sandbox::new();
    let x = |count: usize| "x".repeat(count);
    let label = x(63);
    let long_host = format!("{label}.{label}.{label}.{}", x(62));
    let repositories = [
        "a.b/c".to_owned(),
        "a/b".to_owned(),
        "a.b".to_owned(),
        "a.b/".to_owned(),
        "/a".to_owned(),
        "localhost/a".to_owned(),
        "index.docker.io/a".to_owned(),
        "registry-1.docker.io/a".to_owned(),
        "docker.io/a".to_owned(),
        ":80/a".to_owned(),
        "a:/a".to_owned(),
        "a:0/a".to_owned(),
        "a:080/a".to_owned(),
        "a:1/a".to_owned(),
        "a:65535/a".to_owned(),
        "a:65536/a".to_owned(),
        "a:99999999999999999999/a".to_owned(),
        "a:1:2/a".to_owned(),
        "A.b/c".to_owned(),
        format!("{label}.b/c"),
        format!("{label}x.b/c"),
        format!("b.{label}x/c"),
        format!("{long_host}/c"),
        format!("{long_host}x/c"),
        format!("{long_host}xx/c"),
        format!("{long_host}:1/c"),
        format!("a.b/{}", x(255)),
        format!("a.b/{}", x(256)),
        "a.b/c__d".to_owned(),
        "a.b/c___d".to_owned(),
        "a.b/c---d".to_owned(),
        "a.b/c-_d".to_owned(),
        "a.b/c..d".to_owned(),
        "a.b/cDd".to_owned(),
        "a.b/c$d".to_owned(),
        "a.b/c:d".to_owned(),
        "a.b/c_-d".to_owned(),
        "a.b/c.-d".to_owned(),
        "a.b/c-.d".to_owned(),
        "a.b/c/.d".to_owned(),
        "a.b/c-/d".to_owned(),
        "a.b/c//d".to_owned(),
        "a.b/-c".to_owned(),
        "a.b/c-".to_owned(),
        "a..b/c".to_owned(),
        "a.-b/c".to_owned(),
        "a-.b/c".to_owned(),
        "a--b.c/d".to_owned(),
        "a_b.c/d".to_owned(),
        "-a.b/c".to_owned(),
        "a.b-/c".to_owned(),
        "a.b/c/-d".to_owned(),
        "a.b/c_/d".to_owned(),
    ];
    let tags = ["-".to_owned(), "_".to_owned(), ".a".to_owned(), "-a".to_owned(), "=".to_owned(), x(128), x(129)];
    let numbers =
        ["", "0", "00", "01", "08", "+1", "-1", "1", "2", "9", "9999", "10000", "99999999999999999999", "0x1", "1+1"];
    let texts = repositories.iter().map(|repository| text(repository, "1", "1"));
    let texts = texts.chain(tags.iter().map(|tag| text("a.b/c", tag, "1")));
    let texts = texts.chain(numbers.iter().flat_map(|number| {
        let of_repository = text("a.b/c", "1", "1").replace("\n1 ", &format!("\n{number} "));
        [of_repository, text("a.b/c", "1", number)]
    }));
    for text in texts {
        sandbox.agrees(text.as_bytes()).expect(&text);
    }
}

#[test]
fn shell_commands_in_names_are_refused_and_not_run() {
    let sandbox = Sandbox::new();
    let hex = Digest::of(b"").hex();
    let header = "> a.b/c d.e/f\n";
    for hostile in [
        format!("{header}1 {hex} sha256-{hex}.s due[$(cat $REGISTRY_AUTH_FILE>PWNED;echo 0)]\n"),
        format!("{header}1 {hex} 1 due[$(cat $REGISTRY_AUTH_FILE>PWNED;echo 0)]\n"),
        format!("{header}repositories[$(touch PWNED)] {hex} 1 1\n"),
        format!("{header}1 {hex} 1\n> evil.example/backdoor d.e/prod\n2 {hex} 1 1\n"),
        format!("{header}1 {hex} 1 1\n> evil.example/backdoor d.e/prod\n2 {hex} 1 1\n"),
        format!("> a.b/c d.e/`touch PWNED`\n1 {hex} 1 1\n"),
        format!("> a.b/c d.e/f;touch PWNED\n1 {hex} 1 1\n"),
        format!("> a.b/c d.e/f\r\n1 {hex} 1 1\n"),
        format!("! a.b/c d.e/f\n1 {hex} 1 1\n"),
        format!("{header}1 {hex} * 1\n"),
        format!("{header}1 {hex} 1\n"),
        format!("{header}1 {hex} 1 1 1\n"),
        format!("{header}1  {hex} 1 1\n"),
        format!("{header}1 {hex} 1 1"),
        format!("{header}1 {hex} 1 1\n=\n"),
        format!("{header}=\n1 {hex} 1 1\n"),
        format!("{header}1 {hex} 1 1\n=\n=\n1 {hex} 2 1\n"),
        format!("{header}1 {hex} 1 1\n=\n1 {hex} 2 1\n=\n1 {hex} 3 1\n"),
        header.to_owned(),
        "\n".to_owned(),
        String::new(),
    ] {
        assert!(parse(hostile.as_bytes()).is_err(), "{hostile:?}");
        sandbox.agrees(hostile.as_bytes()).expect(&hostile);
    }
}

#[test]
fn a_setting_that_is_not_a_number_is_refused() {
    let sandbox = Sandbox::new();
    for shell in SHELLS {
        for name in ["JOBS", "TIMEOUT", "PACE"] {
            for value in ["x", " 1", "1\n", "-1", "08", "1e3", "a[$(touch PWNED)]", "9999999999"] {
                let run = sandbox.run(shell, text("a.b/c", "1", "1"), &[(name, value)]);
                assert_eq!((run.status.code(), run.calls.len()), (Some(2), 0), "{shell}, {name}={value}: {run:?}");
                let reason = format!("Refused: {name} is not a number from ");
                assert!(run.output.starts_with(&reason) && run.output.lines().count() == 1, "{run:?}");
            }
        }
        let run = sandbox.run(shell, text("a.b/c", "1", "1"), &[("PACE", "")]);
        assert_eq!((run.status.code(), run.calls.len()), (Some(0), 1), "{shell}: {run:?}");
    }
}

#[test]
fn copies_below_the_barrier_wait_for_those_above_it() {
    let sandbox = Sandbox::new();
    let images = ["1", "2", "3"].map(|tag| image(tag, 1));
    let copies = encode(&[copy("a.b/c", &images), copy("a.b/d", &images[..1])]);
    let then = r#"sleep 0.2; printf 'ended\0\0' >>"$CALLS""#;
    for shell in SHELLS {
        let run = sandbox.run(shell, &copies, &[("THEN", then)]);
        let starts: Vec<_> = run.calls.iter().map(|call| call[0] != "ended").collect();
        assert_eq!(starts, [true, true, false, false, true, true, false, false], "{shell}: {run:?}");
    }
}

#[test]
fn a_failed_copy_is_reported_in_one_clean_line_and_the_others_continue() {
    let sandbox = Sandbox::new();
    let copies = encode(&[copy("a.b/c", &["1", "2"].map(|tag| image(tag, 1)))]);
    let then = r#"case "$*" in *:1) ;; *) exit 0 ;; esac
        head -c 3000 /dev/zero; printf '\033[31mDone\ta.b/c:9\t0\r\nDone\ta.b/c:9\t0\177\001words\n'; exit 1"#;
    for shell in SHELLS {
        let run = sandbox.run(shell, &copies, &[("THEN", then)]);
        assert_eq!((run.status.code(), run.calls.len()), (Some(1), 2), "{shell}: {run:?}");
        let words = " [31mDone a.b/c:9 0  Done a.b/c:9 0  words";
        assert!(run.output.lines().next().is_some_and(|line| line.trim_end().ends_with(words)), "{run:?}");
        assert!(run.output.len() < 2_200, "{run:?}");
        let reports: Vec<_> =
            run.output.lines().map(|line| CopyReport::parse(line).expect(line).expect(line)).collect();
        assert_eq!(reports.iter().map(|it| it.destination.to_string()).collect::<Vec<_>>(), ["d.e/f/c:1", "d.e/f/c:2"]);
        assert_eq!(reports.iter().map(|it| it.error.is_some()).collect::<Vec<_>>(), [true, false]);
    }
}

#[test]
fn a_signature_policy_reaches_skopeo() {
    let sandbox = Sandbox::new();
    let policy = r#"{"default": [{"type": "reject"}], "$(touch PWNED)": "\n"}"#;
    let then = r#"[ "$3" = --policy ] && cat "$4" >&2 && [ "$5" = --registries.d ] && cat "$6"/*.yaml >&2; exit 1"#;
    for shell in SHELLS {
        let run = sandbox.run(shell, text("a.b/c", "1", "1"), &[("THEN", then), ("SIGNATURE_POLICY", policy)]);
        let expected = format!("\t{policy} default-docker:   use-sigstore-attachments: true ");
        assert!(run.output.trim_end_matches('\n').ends_with(&expected), "{shell}: {run:?}");
        assert_eq!(run.calls[0][6], "copy", "{run:?}");

        let run = sandbox.run(shell, text("a.b/c", "1", "1"), &[("SIGNATURE_POLICY", "")]);
        assert_eq!(run.calls[0][..3], ["--command-timeout", "300s", "copy"], "{shell}: {run:?}");
    }
}

#[test]
fn no_process_of_the_task_shows_a_secret() {
    let sandbox = Sandbox::new();
    // A pipe takes 4 KiB at once and 64 KiB in total. A secret of Secrets Manager has at most 64 KiB.
    for (shell, length) in SHELLS.into_iter().flat_map(|shell| [0, 10_000, 65_000].map(|length| (shell, length))) {
        let auth = format!("{SECRET}{}", "x".repeat(length));
        let task =
            sandbox.start(shell, text("a.b/c", "1", "1"), &[("THEN", "exec sleep 600"), ("REGISTRY_AUTH", &auth)]);
        sandbox.wait_for_calls(1);

        let processes = task.processes();
        assert!(processes.len() >= 3, "{shell}: the script, the copy and skopeo: {processes:?}");
        assert!(processes.contains(&task.child.id()), "{shell}: it is still the first process");
        for process in processes {
            for file in ["environ", "cmdline"] {
                let shown = fs::read(format!("/proc/{process}/{file}")).unwrap_or_default();
                assert!(!String::from_utf8_lossy(&shown).contains(SECRET), "{shell}: {file} of {process}");
            }
        }
        let work =
            sandbox.left().into_iter().find(|path| path.ends_with("auth.json")).expect("the logins are in a file");
        let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
        assert_eq!(fs::read_to_string(&work).expect("it is text").trim_end(), auth, "{shell}");
        assert_eq!((mode(&work), mode(work.parent().expect("it is in a directory"))), (0o600, 0o700), "{shell}");

        task.terminate();
        assert_eq!(task.end().status.code(), Some(TERMINATED), "{shell}");
    }
}

#[test]
fn a_terminated_task_ends_at_once_and_leaves_nothing_behind() {
    let sandbox = Sandbox::new();
    let images = ["1", "2", "3"].map(|tag| image(tag, 9_999));
    let copies = encode(&[copy("a.b/c", &images), copy("a.b/d", &images[..1])]);
    // It waits for a slot, at the barrier, for its pace, and for the last copies.
    for (copies, jobs, pace, calls) in [
        (copies.as_str(), "1", "0", 1),
        (&copies, "4", "0", 2),
        (&copies, "4", "1000", 1),
        (&text("a.b/c", "1", "1"), "4", "0", 1),
    ] {
        for shell in SHELLS {
            let more = [("THEN", "exec sleep 600"), ("JOBS", jobs), ("PACE", pace)];
            let task = sandbox.start(shell, copies, &more);
            sandbox.wait_for_calls(calls);
            task.terminate();
            let start = Instant::now();
            let run = task.end();
            assert!(start.elapsed() < Duration::from_secs(5), "{shell}: {run:?}");
            assert_eq!((run.status.code(), run.output.as_str()), (Some(TERMINATED), ""), "{shell}: {run:?}");
            assert_eq!(run.calls.len(), calls, "{shell}: {run:?}");
        }
    }
}

#[test]
fn a_terminated_task_waits_for_skopeo_to_end() {
    let sandbox = Sandbox::new();
    let then = r#"trap "trap '' TERM; sleep 0.3; printf 'ended\0\0' >>'$CALLS'; exit 1" TERM; sleep 600 & wait"#;
    for shell in SHELLS {
        let task = sandbox.start(shell, text("a.b/c", "1", "1"), &[("THEN", then)]);
        sandbox.wait_for_calls(1);
        // skopeo sets its trap.
        sleep(Duration::from_millis(300));
        task.terminate();
        let run = task.end();
        assert_eq!((run.status.code(), run.output.as_str()), (Some(TERMINATED), ""), "{shell}: {run:?}");
        assert_eq!(run.calls.last().map(|call| &call[0]), Some(&"ended".to_owned()), "{shell}: {run:?}");
    }
}

#[test]
fn a_task_leaves_nothing_behind_whenever_it_is_terminated() {
    let sandbox = Sandbox::new();
    let copies = encode(&[copy("a.b/c", &["1", "2", "3", "4"].map(|tag| image(tag, 1)))]);
    for (shell, step) in SHELLS.into_iter().flat_map(|shell| (0..30).map(move |step| (shell, step))) {
        let task = sandbox.start(shell, &copies, &[("THEN", "exec sleep 600")]);
        sleep(Duration::from_micros(step * 600));
        task.terminate();
        let run = task.end();
        // Before the script sets its trap, the signal ends the shell. Later, a shell can print the jobs that it ended.
        let end = run.status.code().or(run.status.signal().map(|signal| 128 + signal));
        assert_eq!(end, Some(TERMINATED), "{shell}, {step}: {run:?}");
        assert!(run.output.lines().all(|line| CopyReport::parse(line).is_none()), "{shell}, {step}: {run:?}");
    }
}

/// A directory in which the script runs.
struct Sandbox {
    directory: TempDir,
    prologue: String,
    script: String,
}

impl Sandbox {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("there is room for a directory");
        let [prologue, script] = command();
        let in_here = |name: &str| directory.path().join(name);
        for shell in SHELLS {
            let path = std::env::var_os("PATH").expect("there is a PATH");
            let program = std::env::split_paths(&path).map(|path| path.join(shell)).find(|it| it.exists());
            fs::create_dir(in_here(shell)).expect("it is new");
            // bash, called as `sh`, follows POSIX.
            symlink(program.unwrap_or_else(|| panic!("{shell} is not installed")), in_here(shell).join("sh"))
                .expect("it is new");
        }
        for name in ["bin", "work"] {
            fs::create_dir(in_here(name)).expect("it is new");
        }
        fs::write(in_here("bin/skopeo"), SKOPEO).expect("it is new");
        fs::set_permissions(in_here("bin/skopeo"), fs::Permissions::from_mode(0o755)).expect("it is ours");
        Self { directory, prologue, script }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs the script in each shell, and compares its calls of skopeo with [`parse`].
    fn agrees(&self, copies: &[u8]) -> Result<(), TestCaseError> {
        let expected = parse(copies);
        for shell in SHELLS {
            let run = self.run(shell, copies, &[]);
            match &expected {
                Ok(expected) => {
                    let options =
                        "--command-timeout 300s copy --quiet --retry-times 3 --multi-arch all --preserve-digests";
                    let mut calls = run.calls.clone();
                    calls.sort_unstable();
                    let expected: Vec<Vec<_>> = expected
                        .iter()
                        .map(|call| options.split(' ').map(str::to_owned).chain(call.iter().cloned()).collect())
                        .collect();
                    prop_assert_eq!(calls, expected, "{}: {:?}", shell, run);
                    prop_assert_eq!(run.status.code(), Some(0), "{}: {:?}", shell, run);
                }
                Err(line) => {
                    let said = format!("Refused: line {line} of COPIES is not what launch-task writes\n");
                    prop_assert_eq!(&run.output, &said, "{}: {:?}", shell, run);
                    prop_assert_eq!((run.status.code(), run.calls.len()), (Some(2), 0), "{}: {:?}", shell, run);
                }
            }
        }
        Ok(())
    }

    fn run(&self, shell: &str, copies: impl AsRef<[u8]>, more: &[(&str, &str)]) -> Run {
        self.start(shell, copies, more).end()
    }

    /// Starts the script as a task, with additional environment variables.
    fn start(&self, shell: &str, copies: impl AsRef<[u8]>, more: &[(&str, &str)]) -> Task<'_> {
        let calls = self.path("calls");
        if calls.exists() {
            fs::remove_file(&calls).expect("it is ours");
        }
        let shell = self.path(shell).join("sh");
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").expect("there is a PATH"));
        let work = self.path("work");
        let output = fs::File::create(self.path("output")).expect("it is ours");
        let prologue = self.prologue.replace("exec /bin/sh", &format!("exec {}", shell.display()));
        assert_ne!(prologue, self.prologue, "the prologue starts a shell");
        let child = Command::new(shell)
            .args(["-c", &prologue, &self.script])
            .env_clear()
            .env("PATH", path)
            .env("CALLS", calls)
            .env("COPIES", OsStr::from_bytes(copies.as_ref()))
            .envs([("HOME", &work), ("TMPDIR", &work)])
            .envs([("JOBS", "4"), ("TIMEOUT", "600"), ("REGISTRY_AUTH", SECRET), ("TASK_TOKEN", SECRET)])
            .envs([("LC_ALL", "C.UTF-8"), ("THEN", "")])
            .envs(more.iter().copied())
            .current_dir(&work)
            // The script ends all processes of its group.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("it is open"))
            .stderr(output)
            .spawn()
            .expect("the shell starts");
        Task { sandbox: self, child }
    }

    /// The calls of skopeo until now.
    fn calls(&self) -> Vec<Vec<String>> {
        let recorded = fs::read_to_string(self.path("calls")).unwrap_or_default();
        recorded.split_terminator("\0\0").map(|call| call.split('\0').map(str::to_owned).collect()).collect()
    }

    fn wait_for_calls(&self, count: usize) {
        let start = Instant::now();
        while self.calls().len() < count {
            assert!(start.elapsed() < PATIENCE, "skopeo was not called");
            sleep(Duration::from_millis(2));
        }
    }

    /// The files in the task's directory.
    fn left(&self) -> Vec<PathBuf> {
        fn files(directory: &Path) -> Vec<PathBuf> {
            let entries =
                fs::read_dir(directory).expect("it is a directory").map(|entry| entry.expect("it is there").path());
            entries
                .flat_map(|path| if path.is_dir() { [files(&path), vec![path]].concat() } else { vec![path] })
                .collect()
        }
        files(&self.path("work"))
    }
}

/// A running script.
struct Task<'a> {
    sandbox: &'a Sandbox,
    child: Child,
}

impl Task<'_> {
    /// The processes of the task's group.
    fn processes(&self) -> Vec<u32> {
        let processes = fs::read_dir("/proc").expect("this is Linux").flatten();
        let processes = processes.filter_map(|process| process.file_name().to_str()?.parse::<u32>().ok());
        let in_group = |process: &u32| {
            let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
            // The fields after the command's name, which is in parentheses: state, parent, group.
            let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
            fields.split_whitespace().nth(2) == Some(&self.child.id().to_string())
        };
        processes.filter(in_group).collect()
    }

    /// Sends SIGTERM to the first process only, as ECS does.
    fn terminate(&self) {
        let kill = Command::new("kill").arg(self.child.id().to_string()).status();
        assert!(kill.expect("kill is installed").success());
    }

    /// Waits until the task ends, and checks that it leaves no file and no process.
    fn end(mut self) -> Run {
        let start = Instant::now();
        let status = loop {
            match self.child.try_wait().expect("it is our child") {
                Some(status) => break status,
                None if start.elapsed() > PATIENCE => panic!("it does not end, calls: {:?}", self.sandbox.calls()),
                None => sleep(Duration::from_micros(500)),
            }
        };
        let output = fs::read(self.sandbox.path("output")).expect("it is a file");
        let run = Run { status, output: String::from_utf8_lossy(&output).into_owned(), calls: self.sandbox.calls() };
        let left = self.sandbox.left();
        assert!(left.is_empty(), "files are left: {left:?}: {run:?}");
        // A process that ended exists until its parent waits for it.
        while !self.processes().is_empty() {
            assert!(start.elapsed() < PATIENCE, "processes are left: {:?}: {run:?}", self.processes());
            sleep(Duration::from_millis(2));
        }
        run
    }
}

/// A script that has ended.
#[derive(Debug)]
struct Run {
    status: ExitStatus,
    output: String,
    calls: Vec<Vec<String>>,
}

/// The two parts of the container's command in the template.
fn command() -> [String; 2] {
    let template = include_str!("../../template.yaml");
    let (_, container) = template.split_once("\n        - Name: skopeo\n").expect("the task has a container");
    let (_, items) = container.split_once("\n          Command:\n").expect("the container has a command");
    let is_inside = |line: &&str| line.is_empty() || line.starts_with("            ");
    let items = items.lines().take_while(is_inside).collect::<Vec<_>>().join("\n");
    let blocks = items.split("            - |\n").skip(1);
    let text = |block: &str| {
        block.lines().map(|line| format!("{}\n", line.strip_prefix("              ").unwrap_or(line))).collect()
    };
    blocks.map(text).collect::<Vec<String>>().try_into().expect("the command has two parts")
}

/// The expected calls for a value of `COPIES`: skopeo's last two arguments for each image, sorted; or the number of the first
/// line that [`encode`] does not write. The order of the images is not checked, since the script does not check it.
fn parse(text: &[u8]) -> Result<Vec<[String; 2]>, usize> {
    let mut copies: Vec<RepositoryCopy> = Vec::new();
    let mut calls = Vec::new();
    let (mut barriers, mut is_complete) = (0, false);
    let lines: Vec<_> = text.split_inclusive(|byte| *byte == b'\n').collect();
    for (index, line) in lines.iter().enumerate() {
        let line = str::from_utf8(line).map_err(|_| index + 1)?;
        if calls.is_empty()
            && let Some(header) = header(line)
        {
            copies.push(header);
        } else if line == "=\n" && is_complete && barriers == 0 {
            (barriers, is_complete) = (1, false);
        } else {
            calls.push(image_call(&copies, line).ok_or(index + 1)?);
            is_complete = true;
        }
    }
    calls.sort();
    if is_complete { Ok(calls) } else { Err(lines.len() + 1) }
}

/// Parses the line of a repository; `None` unless [`encode`] can write it.
fn header(line: &str) -> Option<RepositoryCopy> {
    let (source, destination) = line.strip_prefix("> ")?.trim_end_matches('\n').split_once(' ')?;
    let destination: Repository = destination.parse().ok()?;
    let copy = RepositoryCopy {
        source: source.parse().ok()?,
        image: destination.name.clone(),
        destination,
        images: Vec::new(),
    };
    (encode(std::slice::from_ref(&copy)) == line).then_some(copy)
}

/// The call for the line of an image; `None` unless [`encode`] can write it.
fn image_call(copies: &[RepositoryCopy], line: &str) -> Option<[String; 2]> {
    let [number, hex, tag, manifests] = line.trim_end_matches('\n').split(' ').collect::<Vec<_>>().try_into().ok()?;
    let image = Image {
        digest: format!("sha256:{hex}").parse().ok()?,
        tag: if tag == "-" { None } else { Some(tag.parse().ok()?) },
        bytes: 0,
        manifests: manifests.parse().ok()?,
        reason: Default::default(),
    };
    let mut copies = copies.get(..number.parse().ok()?)?.to_vec();
    copies.last_mut()?.images = vec![image];
    let copy = copies.last()?;
    (encode(&copies).split_inclusive('\n').next_back() == Some(line)).then(|| call(copy, &copy.images[0]))
}

/// skopeo's last two arguments for an image.
fn call(copy: &RepositoryCopy, image: &Image) -> [String; 2] {
    let source = format!("docker://{}@{}", copy.source, image.digest);
    let destination = match &image.tag {
        Some(tag) => format!("docker://{}:{tag}", copy.destination),
        None => format!("docker://{}@{}", copy.destination, image.digest),
    };
    [source, destination]
}

/// A value of `COPIES` with one image.
fn text(repository: &str, tag: &str, manifests: &str) -> String {
    format!("> {repository} d.e/f\n1 {} {tag} {manifests}\n", Digest::of(b"").hex())
}

fn image(tag: &str, manifests: u32) -> Image {
    let tag = Some(tag.parse().expect("it is a tag"));
    Image { digest: Digest::of(b""), tag, bytes: 0, manifests, reason: Default::default() }
}

fn copy(source: &str, images: &[Image]) -> RepositoryCopy {
    let source: Repository = source.parse().expect("it is a repository");
    let destination: Repository = format!("d.e/f/{}", source.name).parse().expect("it is a repository");
    RepositoryCopy { source, image: destination.name.clone(), destination, images: images.to_vec() }
}

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() })
}

fn repository() -> impl Strategy<Value = Repository> {
    let host = prop_oneof![
        8 => r"([a-z0-9]([a-z0-9-]{0,5}[a-z0-9])?\.){1,4}[a-z]{2,3}(:[1-9][0-9]{0,3})?",
        1 => "(localhost|[a-z]{1,5}):6[0-4][0-9]{3}",
        1 => "localhost",
        1 => r"([a-z0-9]{63}\.){3}[a-z0-9]{63}",
    ];
    let name = prop_oneof![
        8 => r"[a-z0-9]{1,4}((\.|_|__|-{1,3}|/)[a-z0-9]{1,4}){0,5}",
        1 => "[a-z0-9]{255}",
    ];
    (host, name).prop_map(|(host, name)| format!("{host}/{name}").parse().expect("it is a repository"))
}

fn plan() -> impl Strategy<Value = Vec<RepositoryCopy>> {
    let tag = prop_oneof![8 => "[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", 1 => "[A-Za-z0-9_][A-Za-z0-9_.-]{127}"];
    let tag = proptest::option::of(tag.prop_map(|tag| tag.parse().expect("it is a tag")));
    let image = (any::<u64>(), tag, 0..20_000_u32).prop_map(|(content, tag, manifests)| Image {
        digest: Digest::of(&content.to_ne_bytes()),
        tag,
        bytes: 0,
        manifests,
        reason: Default::default(),
    });
    let copy = (repository(), repository(), vec(image, 0..4)).prop_map(|(source, destination, images)| {
        RepositoryCopy { source, image: destination.name.clone(), destination, images }
    });
    let has_images = |copies: &Vec<RepositoryCopy>| copies.iter().any(|copy| !copy.images.is_empty());
    vec(copy, 1..4).prop_filter("there is something to copy", has_images)
}

/// A change of a text.
#[derive(Clone, Debug)]
enum Edit {
    /// Replaces a number of bytes.
    Bytes(Index, usize, Vec<u8>),
    /// Replaces a field.
    Field(Index, Index, Vec<u8>),
    /// Inserts text above a line, or replaces the line.
    Line(Index, bool, Vec<u8>),
    /// Moves a line.
    Move(Index, Index),
}

fn edit() -> impl Strategy<Value = Edit> {
    let snippets = [
        "",
        " ",
        "  ",
        "\t",
        "\r",
        "\n",
        "\n\n",
        "\r\n",
        "\x01",
        "\x7f",
        "\u{80}",
        "\u{a0}",
        "\u{ff}",
        "\u{212a}",
        "a",
        "A",
        "0",
        "1",
        "2",
        "08",
        "010",
        "0x1",
        "-1",
        "+1",
        "1.0",
        "9999",
        "10000",
        "99999999999999999999",
        "-",
        "--",
        ".",
        "..",
        "_",
        "___",
        "/",
        "//",
        ":",
        ":80",
        "@",
        "=",
        "=\n",
        ">",
        "> ",
        "!",
        "#",
        "~",
        "'",
        "\"",
        "\\",
        "\\n",
        "*",
        "?",
        "[a-z]",
        "%s",
        "&",
        ";",
        "|",
        "$1",
        "$0",
        "$(touch PWNED)",
        "`touch PWNED`",
        "[$(touch PWNED)]",
        "number[$(touch PWNED)]",
        "$((1))",
        "${1}",
        ">PWNED",
        ";touch PWNED;",
        "\ntouch PWNED\n",
        "LOGINS\n",
        "> evil.example/a d.e/b\n",
        "sha256:",
        "latest",
        "localhost/a",
        "index.docker.io/a",
        "a.b:65536/a",
    ];
    let snippet = || {
        let long = select(vec!["a", "9", "-", "a.", "a/", " "]).prop_map(|text| text.repeat(300).into_bytes());
        prop_oneof![
            20 => select(snippets.to_vec()).prop_map(|text| text.as_bytes().to_vec()),
            2 => vec(1..=u8::MAX, 1..4),
            1 => long,
        ]
    };
    prop_oneof![
        (any::<Index>(), 0..3_usize, snippet()).prop_map(|(at, count, text)| Edit::Bytes(at, count, text)),
        (any::<Index>(), any::<Index>(), snippet()).prop_map(|(line, field, text)| Edit::Field(line, field, text)),
        (any::<Index>(), any::<bool>(), snippet()).prop_map(|(line, above, text)| Edit::Line(line, above, text)),
        (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Edit::Move(from, to)),
    ]
}

impl Edit {
    fn apply(self, text: Vec<u8>) -> Vec<u8> {
        if text.is_empty() {
            return text;
        }
        let mut lines: Vec<Vec<u8>> = text.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        match self {
            Self::Bytes(at, count, new) => {
                let at = at.index(text.len() + 1);
                return [&text[..at], &new, &text[(at + count).min(text.len())..]].concat();
            }
            Self::Field(line, field, new) => {
                let line = line.get_mut(&mut lines);
                let mut fields: Vec<_> =
                    line.trim_ascii_end().split(|byte| *byte == b' ').map(<[u8]>::to_vec).collect();
                *field.get_mut(&mut fields) = new;
                *line = [fields.join(&b' '), vec![b'\n']].concat();
            }
            Self::Line(line, above, new) => {
                let line = line.get_mut(&mut lines);
                *line = if above { [new, line.clone()].concat() } else { new };
            }
            Self::Move(from, to) => {
                let line = lines.remove(from.index(lines.len()));
                lines.insert(to.index(lines.len() + 1), line);
            }
        }
        lines.concat()
    }
}
