//! The command `ecr-transfer`.

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
