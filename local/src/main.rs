//! `local`: the commands behind `make run`, `make check-aws-local`, `make up` and `make down`.

mod background;
mod demonstration;
mod report;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use local::error::{Result, chain};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// An AWS on this machine, to see the project at work.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Copy images on an AWS of its own, twice, and check them.
    Run {
        /// Copy just these: from the real registries where there is a network, else from stand-ins.
        #[arg(long, value_delimiter = ',')]
        images: Vec<String>,
    },
    /// Run `make check-aws` on an AWS of its own.
    Check,
    /// Start an AWS in the background, with the stack deployed and images to copy.
    Up {
        /// The port of its endpoint.
        #[arg(long, default_value_t = 4566)]
        port: u16,
    },
    /// Stop it.
    Down,
    /// Be it.
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
    match command.await {
        Ok(Ending::Good) => ExitCode::SUCCESS,
        Ok(Ending::Bad) => ExitCode::FAILURE,
        Ok(Ending::Interrupted) => ExitCode::from(INTERRUPTED),
        Err(error) => {
            complain(&chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// How a command ended, if it did not fail.
enum Ending {
    Good,
    /// It did its work, and found something wrong.
    Bad,
    Interrupted,
}

#[expect(clippy::print_stderr, reason = "this is a command")]
fn complain(text: &str) {
    eprintln!("local: {text}");
}

/// Somebody wants it all to end: with Ctrl-C, by closing the terminal, or politely.
struct Interruption(Vec<Signal>);

impl Interruption {
    /// Listens from now on. What would have ended this process no longer does.
    fn listen() -> Result<Self> {
        let kinds = [SignalKind::interrupt(), SignalKind::hangup(), SignalKind::terminate()];
        let signals = kinds.into_iter().map(signal).collect::<std::io::Result<_>>();
        signals.map(Self).map_err(local::Error::file("signals"))
    }

    /// Does the work; or gives it up, and returns nothing.
    async fn or<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<Option<T>> {
        let any = futures_util::future::select_all(self.0.iter_mut().map(|signal| Box::pin(signal.recv())));
        tokio::select! {
            done = work => done.map(Some),
            _ = any => Ok(None),
        }
    }
}
