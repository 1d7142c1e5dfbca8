//! The errors of the Lambdas. A message says what happened, with the value, and what to do. The words of AWS, registries and
//! parsers come last, as they are.

use std::error::Error as StdError;

use aws_sdk_ecr::error::{ProvideErrorMetadata, SdkError};

use crate::kind::Kind;
use crate::text::Excerpt;

/// Why a Lambda fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A parameter of the stack or an execution's input is invalid.
    #[error("{parameter} is {:?}: {}", Excerpt::new(value), Excerpt::new(problem))]
    Configuration {
        /// `minImages`, for example.
        parameter: String,
        /// Empty if the parameter has no value.
        value: String,
        /// What is expected.
        problem: String,
    },
    /// A credential is missing or invalid. The message never contains its content.
    #[error("The credential {name:?} cannot be used: {problem}")]
    Credential {
        /// The value of the stack's parameter.
        name: String,
        /// What is wrong, and what to do.
        problem: String,
        /// AWS's error, if there is one.
        #[source]
        source: Option<Box<dyn StdError + Send + Sync>>,
    },
    /// A selected image, or its name at the destination, is invalid.
    #[error("{entry:?}{}: {}", place.as_ref().map(|place| format!(" ({place})")).unwrap_or_default(), Excerpt::new(problem))]
    Selection {
        /// The entry as the user wrote it.
        entry: Excerpt,
        /// `entry 2 of /stack/SelectedImages`, for example.
        place: Option<String>,
        /// What is expected.
        problem: String,
    },
    /// The source has fewer images than `minImages`.
    #[error(
        "minImages is {minimum}, but the source has {listed} image{}. Check srcRegion and srcAccountId, or the image list.",
        if *listed == 1 { "" } else { "s" }
    )]
    TooFewImages {
        /// The number of images at the source.
        listed: usize,
        /// The value of `minImages`.
        minimum: usize,
    },
    /// A request to a registry failed. Requests through AWS's API are [`Aws`](Self::Aws).
    #[error("{subject}: {message}")]
    Registry {
        /// The repository or the registry.
        subject: String,
        /// The HTTP status, if the registry answered.
        status: Option<u16>,
        /// The registry's message, or why there is no answer.
        message: Excerpt,
    },
    /// The stack's parameters do not allow this.
    #[error("{subject}: {problem}")]
    NotAllowed {
        /// The repository or the registry.
        subject: String,
        /// What is not allowed, and what to do.
        problem: String,
    },
    /// The run would copy more than `maxImages` or `maxBytes`.
    #[error("{parameter} is {limit}, but the run would copy {found} {unit}. Nothing was copied.")]
    TooMuchToCopy {
        /// `images` or `bytes`.
        unit: &'static str,
        /// How many the run would copy.
        found: u64,
        /// `maxImages` or `maxBytes`.
        parameter: &'static str,
        /// The parameter's value.
        limit: u64,
    },
    /// The payload of an invocation does not have the expected form.
    #[error("Invalid event: {0}")]
    Event(Excerpt),
    /// ECS did not start the task, and may start it later: there is no capacity, or the account's quota is used up.
    #[error("ECS did not start the task: {0}")]
    NoCapacity(Excerpt),
    /// ECS never starts this task.
    #[error("ECS rejected the task: {0}")]
    TaskRejected(Excerpt),
    /// A call of AWS's API failed.
    #[error("{action} on {subject} failed: {message}")]
    Aws {
        /// The IAM action, for example `ecr:DescribeImages`.
        action: &'static str,
        /// A repository, a table or a secret, for example.
        subject: String,
        /// What kind of failure it is.
        kind: Kind,
        /// The service's message, or why there is no answer.
        message: Excerpt,
        /// The SDK's error.
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
                _ => root_cause(&error).to_string(),
            };
            let (kind, message) = (Kind::of_aws(action, &error), Excerpt::new(&message));
            Self::Aws { action, subject, kind, message, source: Box::new(error) }
        }
    }

    /// The name that the state machine's Retry and Catch match on.
    pub fn name(&self) -> &'static str {
        self.kind().name()
    }

    /// What kind of failure it is.
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

/// The innermost of an error's sources, or the error itself.
pub fn root_cause<'a>(error: &'a (dyn StdError + 'static)) -> &'a (dyn StdError + 'static) {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause
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
