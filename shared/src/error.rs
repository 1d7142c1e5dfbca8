//! What can go wrong.

use std::error::Error as StdError;

use aws_sdk_ecr::error::{ProvideErrorMetadata, SdkError};

use crate::kind::Kind;
use crate::text::Excerpt;

/// Why a Lambda could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A parameter of the stack, or an execution's input, has a value that cannot be used.
    #[error("{parameter} is {:?}: {}", Excerpt::new(value), Excerpt::new(problem))]
    Configuration {
        /// The parameter's name.
        parameter: String,
        /// The value; empty if there is none.
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
    /// The payload of an invocation does not have the expected form.
    #[error("the event is not valid: {0}")]
    Event(Excerpt),
    /// ECS started no task, and may start one later: it has no capacity, or the account's quota is used up.
    #[error("ECS started no task: {0}")]
    NoCapacity(Excerpt),
    /// ECS will not start a task like this one.
    #[error("ECS rejected the task: {0}")]
    TaskRejected(Excerpt),
    /// AWS refused or failed a call.
    #[error("{action} on {subject} failed: {message}")]
    Aws {
        /// The IAM action, for example `ecr:DescribeImages`.
        action: &'static str,
        /// What the call was about: a repository, a table, a secret.
        subject: String,
        /// What kind of failure it is.
        kind: Kind,
        /// The service's message, or what kept the call from being answered.
        message: Excerpt,
        /// The whole error.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
}

impl Error {
    /// Wraps the error of an AWS call; for `map_err`.
    pub fn aws<E>(action: &'static str, subject: impl Into<String>) -> impl FnOnce(SdkError<E>) -> Self
    where
        E: StdError + ProvideErrorMetadata + Send + Sync + 'static,
    {
        let subject = subject.into();
        move |error| {
            let message = match (error.code(), error.message()) {
                (Some(code), Some(message)) => format!("{code}: {message}"),
                (Some(code), None) => code.to_owned(),
                _ => root_cause(&error),
            };
            let (kind, message) = (Kind::of_aws(action, &error), Excerpt::new(&message));
            Self::Aws { action, subject, kind, message, source: Box::new(error) }
        }
    }

    /// The name that the state machine's Retry and Catch match on.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.kind().name()
    }

    /// What kind of failure it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Configuration { .. } => Kind::Configuration,
            Self::Credential { .. } => Kind::Credential,
            Self::Selection { .. } => Kind::ImageList,
            Self::TooFewImages { .. } => Kind::TooFewImages,
            Self::NotAllowed { .. } => Kind::NotAllowed,
            Self::TooMuchToCopy { .. } => Kind::TooMuchToCopy,
            Self::Event(_) => Kind::Event,
            Self::NoCapacity(_) => Kind::NoCapacity,
            Self::TaskRejected(_) => Kind::Invalid,
            Self::Registry { status, .. } => status.map_or(Kind::Unavailable, Kind::of_status),
            Self::Aws { kind, .. } => *kind,
        }
    }
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
    use std::io;

    use aws_sdk_ecr::error::ErrorMetadata;

    use super::*;

    #[test]
    fn a_call_that_was_not_answered_says_what_kept_it_from_that() {
        let timeout = SdkError::<ErrorMetadata>::timeout_error(io::Error::other("the cable is cut"));
        let error = Error::aws("s3:PutObject", "bucket")(timeout);
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.to_string().contains("the cable is cut"), "{error}");
    }
}
