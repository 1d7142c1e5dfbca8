//! Reads files with a limit, and without waiting for another program to write them.

use std::io::Read;
use std::path::Path;

use anyhow::{Result, ensure};
use fs_err as fs;

/// What the shell has opened, such as the `/dev/fd/63` of `<(command)`. The program behind it writes, or has ended.
const OPEN: [&str; 3] = ["/dev/stdin", "/dev/fd", "/proc/self/fd"];

/// Reads a regular file, or what the shell has opened.
///
/// # Errors
/// If it is something else, cannot be read, or has more than `limit` bytes.
pub fn read(file: &Path, limit: u64) -> Result<Vec<u8>> {
    let is_open = OPEN.iter().any(|open| file.starts_with(open));
    ensure!(is_open || is_regular(file), "It is not a regular file. Give its content to standard input instead");
    read_all(fs::File::open(file)?, limit)
}

/// Reads a regular file.
///
/// # Errors
/// As [`read`].
pub fn read_regular(file: &Path, limit: u64) -> Result<Vec<u8>> {
    ensure!(is_regular(file), "It is not a regular file");
    read_all(fs::File::open(file)?, limit)
}

/// Reads what is open.
///
/// # Errors
/// If it cannot be read, or has more than `limit` bytes.
pub fn read_all(source: impl Read, limit: u64) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    source.take(limit + 1).read_to_end(&mut content)?;
    ensure!(content.len() as u64 <= limit, "The file has more than {} MiB, which is not supported", limit >> 20);
    Ok(content)
}

/// Whether opening a file returns at once, and reading it ends. Opening one that is missing says so.
fn is_regular(file: &Path) -> bool {
    file.metadata().map_or(true, |metadata| metadata.is_file())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;
    use std::process::Command;

    use super::*;

    #[test]
    fn only_regular_files_are_read_and_what_the_shell_has_opened() {
        let directory = tempfile::tempdir().expect("there is room");
        let (regular, pipe) = (directory.path().join("regular"), directory.path().join("pipe"));
        fs::write(&regular, "x").expect("it can be written");
        assert!(Command::new("mkfifo").arg(&pipe).status().expect("it runs").success());
        for read in [read, read_regular] {
            assert_eq!(read(&regular, 1).expect("it is regular"), b"x");
            for other in [directory.path(), &pipe, Path::new("/dev/zero")] {
                let error = read(other, 1).expect_err("it is not regular").to_string();
                assert!(error.starts_with("It is not a regular file"), "{error}");
            }
            let error = read(&directory.path().join("missing"), 1).expect_err("it is missing").to_string();
            assert!(error.starts_with("failed to open file"), "{error}");
        }
        let opened = fs::File::open(&regular).expect("it is there");
        let descriptor = format!("/dev/fd/{}", opened.as_raw_fd());
        assert_eq!(read(Path::new(&descriptor), 1).expect("it is open"), b"x");
    }

    #[test]
    fn a_file_has_a_limit() {
        let file = tempfile::NamedTempFile::new().expect("there is room");
        file.as_file().set_len(2 << 20).expect("there is room");
        for read in [read, read_regular] {
            assert!(read(file.path(), 2 << 20).is_ok());
            let error = read(file.path(), (2 << 20) - 1).expect_err("it is larger").to_string();
            assert_eq!(error, "The file has more than 1 MiB, which is not supported");
        }
    }
}
