//! What can go wrong, and the short name under which the state machine knows it.

use std::error::Error as StdError;

use aws_sdk_ecr::error::{ProvideErrorMetadata, SdkError};

use crate::text::Excerpt;

/// Why a Lambda could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An environment variable, and so the stack parameter behind it, is missing or has a value that cannot be used.
    #[error("{variable} is {:?}: {}", Excerpt::new(value), Excerpt::new(problem))]
    Configuration {
        /// The variable's name.
        variable: String,
        /// The value that was found; empty where the variable is not set.
        value: String,
        /// What was expected.
        problem: String,
    },
    /// A credential is missing, does not parse or lacks a field. Its content is never part of the message.
    #[error("the credential {name:?} cannot be used: {problem}")]
    Credential {
        /// The secret's name, as the stack parameter gives it.
        name: String,
        /// What is wrong with it.
        problem: String,
        /// The service's own error, where there is one.
        #[source]
        source: Option<Box<dyn StdError + Send + Sync>>,
    },
    /// A selected image, or what it would be called at the destination, is not valid.
    #[error("{entry:?}{}: {}", place.as_ref().map(|place| format!(" ({place})")).unwrap_or_default(), Excerpt::new(problem))]
    Selection {
        /// The entry as the user wrote it.
        entry: Excerpt,
        /// Where it stands: `entry 2 of /stack/SelectedImages`.
        place: Option<String>,
        /// What was expected.
        problem: String,
    },
    /// The source holds fewer images than it should.
    #[error("the source has {listed} images, and minImages asks for {minimum}: is it the right registry?")]
    TooFewImages {
        /// How many there are.
        listed: usize,
        /// How many there should be.
        minimum: usize,
    },
    /// A registry that is not asked through AWS's API refused or failed a request.
    #[error("{subject}: {message}")]
    Registry {
        /// The repository, or the registry.
        subject: String,
        /// The answer's status; `None` where there was no answer.
        status: Option<u16>,
        /// What the registry said, or what kept it from answering.
        message: Excerpt,
    },
    /// The stack's parameters do not allow something that was asked for.
    #[error("{subject}: {problem}")]
    NotAllowed {
        /// The repository, or the registry.
        subject: String,
        /// What is not allowed, and what to do.
        problem: String,
    },
    /// An earlier execution of the same state machine is active.
    #[error("waiting for the execution {execution}")]
    AnotherRun {
        /// The earlier execution's ARN.
        execution: String,
    },
    /// A run would copy more than it may.
    #[error("the run would copy {found} {what}, and {parameter} allows {limit}; nothing was copied")]
    TooMuchToCopy {
        /// `images` or `bytes`.
        what: &'static str,
        /// How many there are.
        found: u64,
        /// The parameter that sets the limit.
        parameter: &'static str,
        /// How many there may be.
        limit: u64,
    },
    /// AWS refused or failed a call.
    #[error("{action} on {subject} failed: {message}")]
    Aws {
        /// The IAM action, for example `ecr:DescribeImages`.
        action: &'static str,
        /// What the call was about: a repository, a table, a secret.
        subject: String,
        /// The service's error code; empty where the call never got an answer.
        code: String,
        /// The service's message, or what kept the call from being answered.
        message: Excerpt,
        /// The whole error.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
}

impl Error {
    /// Every [name](Self::name) that there is.
    pub const NAMES: [&str; 10] = [
        "AccessDenied",
        "AnotherRunIsActive",
        "InvalidConfiguration",
        "InvalidCredential",
        "InvalidImageList",
        "NotAllowed",
        "RequestRefused",
        "ServiceUnavailable",
        "TooFewImages",
        "TooMuchToCopy",
    ];

    /// Wraps the error of an AWS call; for `map_err`.
    pub fn aws<E, R>(action: &'static str, subject: impl Into<String>) -> impl FnOnce(SdkError<E, R>) -> Self
    where
        E: StdError + ProvideErrorMetadata + Send + Sync + 'static,
        R: std::fmt::Debug + Send + Sync + 'static,
    {
        let subject = subject.into();
        move |error| {
            let code = error.code().unwrap_or_default().to_owned();
            let message = match (error.code(), error.message()) {
                (Some(code), Some(message)) => format!("{code}: {message}"),
                (Some(code), None) => code.to_owned(),
                _ => root_cause(&error),
            };
            Self::Aws { action, subject, code, message: Excerpt::new(&message), source: Box::new(error) }
        }
    }

    /// The name that the state machine's Retry and Catch match on: short and stable.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Configuration { .. } => "InvalidConfiguration",
            Self::Credential { .. } => "InvalidCredential",
            Self::Selection { .. } => "InvalidImageList",
            Self::TooFewImages { .. } => "TooFewImages",
            Self::NotAllowed { .. } => "NotAllowed",
            Self::AnotherRun { .. } => "AnotherRunIsActive",
            Self::TooMuchToCopy { .. } => "TooMuchToCopy",
            Self::Registry { status: Some(401 | 403), .. } => "AccessDenied",
            Self::Registry { status: None | Some(429 | 500..), .. } => "ServiceUnavailable",
            Self::Registry { .. } => "RequestRefused",
            Self::Aws { code, .. } if is_denied(code) => "AccessDenied",
            Self::Aws { code, .. } if is_refused(code) => "RequestRefused",
            Self::Aws { .. } => "ServiceUnavailable",
        }
    }
}

fn is_denied(code: &str) -> bool {
    code.starts_with("AccessDenied")
        || matches!(code, "UnauthorizedOperation" | "UnrecognizedClientException" | "InvalidClientTokenId")
}

/// Whether the service understood the call and said no: asking again would give the same answer.
fn is_refused(code: &str) -> bool {
    code.starts_with("Invalid")
        || code.starts_with("Validation")
        || code.contains("LimitExceeded")
        || code.contains("NotFound")
}

fn root_cause(error: &dyn StdError) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aws(code: &str) -> Error {
        let (subject, code, message) = ("app".into(), code.into(), Excerpt::default());
        Error::Aws { action: "ecr:DescribeImages", subject, code, message, source: "refused".into() }
    }

    #[test]
    fn a_service_that_said_no_is_told_apart_from_one_that_may_say_yes_the_next_time() {
        for (code, name) in [
            ("AccessDeniedException", "AccessDenied"),
            ("UnrecognizedClientException", "AccessDenied"),
            ("InvalidParameterException", "RequestRefused"),
            ("RepositoryNotFoundException", "RequestRefused"),
            ("LimitExceededException", "RequestRefused"),
            ("ThrottlingException", "ServiceUnavailable"),
            ("ServerException", "ServiceUnavailable"),
            ("", "ServiceUnavailable"),
        ] {
            assert_eq!(aws(code).name(), name, "{code}");
            assert!(Error::NAMES.contains(&name));
        }
    }
}
