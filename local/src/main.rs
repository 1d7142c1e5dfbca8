//! `local`: the commands behind `make run`, `make check-aws-local`, `make up` and `make down`.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is a command")]

mod background;
mod demonstration;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};
use local::Result;
use tokio::signal::unix::{SignalKind, signal};

/// A local AWS on this machine.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Copy images on a local AWS, twice, and check the copies.
    Run {
        /// Copy just these images: from their registries if there is a network, else from stand-ins.
        #[arg(long, value_delimiter = ',')]
        images: Vec<String>,
    },
    /// Run `make check-aws` on a local AWS.
    Check,
    /// Start a local AWS in the background, with a stack and images to copy.
    Up {
        /// The port of its endpoint.
        #[arg(long, default_value_t = 4566)]
        port: u16,
    },
    /// Stop the local AWS in the background.
    Down,
    /// Run the local AWS in this process.
    #[command(hide = true)]
    Serve {
        #[arg(long)]
        port: u16,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    const INTERRUPTED: u8 = 130;
    let command = async {
        match Arguments::parse().command {
            Command::Run { images } => demonstration::run(&images).await,
            Command::Check => demonstration::check().await,
            Command::Up { port } => background::up(port).await,
            Command::Down => background::down().await,
            Command::Serve { port } => background::serve(port).await,
        }
    };
    // When a command is dropped, everything that it has started ends.
    tokio::select! {
        result = command => match result {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("local: {error:#}");
                ExitCode::FAILURE
            }
        },
        _ = interruption() => ExitCode::from(INTERRUPTED),
    }
}

/// Waits for Ctrl-C, for the terminal to close, or for `make down`.
async fn interruption() -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! { _ = interrupt.recv() => {} _ = hangup.recv() => {} _ = terminate.recv() => {} }
    Ok(())
}

/// Prints what is being done, and how long it took.
async fn step<T>(what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    print!("{what} … ");
    std::io::stdout().flush()?;
    let started = Instant::now();
    let result = work.await;
    let end = if result.is_ok() { format!("{:.1} s", started.elapsed().as_secs_f64()) } else { "failed".to_owned() };
    println!("{end}");
    result
}
