//! Kinds of failures, and the short names under which the state machine knows them.

use aws_runtime::retries::classifiers::{THROTTLING_ERRORS, TRANSIENT_ERRORS};
use aws_sdk_ecr::error::{ProvideErrorMetadata, SdkError};

/// What kind of failure an [`Error`](crate::Error) is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A parameter of the stack cannot be used.
    Configuration,
    /// A credential cannot be used.
    Credential,
    /// An entry of the list of images cannot be used.
    ImageList,
    /// The source has fewer images than `minImages`.
    TooFewImages,
    /// The stack's parameters do not allow it.
    NotAllowed,
    /// The run would copy more than `maxImages` or `maxBytes`.
    TooMuchToCopy,
    /// There were too many requests.
    Throttled,
    /// The service failed, or did not answer.
    Unavailable,
    /// The session of a role has expired. Another invocation gets another session, so a retry helps. Where a stored session
    /// has expired, a retry does not help, and the error is a [`Credential`](Self::Credential).
    Expired,
    /// Access is denied.
    Denied,
    /// What the request is about does not exist.
    NotFound,
    /// The request was understood and refused, and would be refused again.
    Invalid,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 12] = [
        Self::Configuration,
        Self::Credential,
        Self::ImageList,
        Self::TooFewImages,
        Self::NotAllowed,
        Self::TooMuchToCopy,
        Self::Throttled,
        Self::Unavailable,
        Self::Expired,
        Self::Denied,
        Self::NotFound,
        Self::Invalid,
    ];

    /// The name that the state machine's Retry and Catch match on: short and stable.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Configuration => "InvalidConfiguration",
            Self::Credential => "InvalidCredential",
            Self::ImageList => "InvalidImageList",
            Self::TooFewImages => "TooFewImages",
            Self::NotAllowed => "NotAllowed",
            Self::TooMuchToCopy => "TooMuchToCopy",
            Self::Throttled | Self::Unavailable | Self::Expired => "ServiceUnavailable",
            Self::Denied => "AccessDenied",
            Self::NotFound | Self::Invalid => "RequestRefused",
        }
    }

    /// Whether the same request may succeed later.
    #[must_use]
    pub fn is_transient(self) -> bool {
        matches!(self, Self::Throttled | Self::Unavailable | Self::Expired)
    }

    /// Of an answer with this HTTP status.
    pub(crate) fn of_status(status: u16) -> Self {
        match status {
            401 | 403 => Self::Denied,
            404 => Self::NotFound,
            429 => Self::Throttled,
            500.. => Self::Unavailable,
            _ => Self::Invalid,
        }
    }

    /// Of the error of an AWS call. `action` is its IAM action, which begins with the service.
    pub(crate) fn of_aws<E: ProvideErrorMetadata>(action: &str, error: &SdkError<E>) -> Self {
        let SdkError::ServiceError(answer) = error else {
            let is_ours = matches!(error, SdkError::ConstructionFailure(_));
            return if is_ours { Self::Invalid } else { Self::Unavailable };
        };
        let (service, _) = action.split_once(':').unwrap_or_default();
        // ECS hands on what EC2 answered to it, as its own InvalidParameterException:
        // `Error retrieving subnet information for […]: Rate exceeded (ErrorCode: Throttling)`.
        let inner = || {
            let (_, inner) = answer.err().message()?.rsplit_once("(ErrorCode: ")?;
            Self::of_code(service, inner.split(')').next()?)
        };
        let code = || Self::of_code(service, answer.err().code()?);
        inner().or_else(code).unwrap_or_else(|| Self::of_status(answer.raw().status().as_u16()))
    }

    /// Of an error code, where it says more than the status: services with JSON protocols answer 400 to all that is not
    /// their own fault.
    fn of_code(service: &str, code: &str) -> Option<Self> {
        Some(match code {
            // A quota of resources for most services, and of requests for DynamoDB, says the documentation of each.
            "LimitExceededException" if service != "dynamodb" => Self::Invalid,
            "KmsThrottlingException" => Self::Throttled,
            _ if THROTTLING_ERRORS.contains(&code) => Self::Throttled,
            _ if TRANSIENT_ERRORS.contains(&code) => Self::Unavailable,
            "ExpiredToken" | "ExpiredTokenException" | "RequestExpired" | "TokenRefreshRequired" => Self::Expired,
            "AccessDenied"
            | "AccessDeniedException"
            | "IncompleteSignature"
            | "IncompleteSignatureException"
            | "InvalidClientTokenId"
            | "InvalidSignatureException"
            | "KmsAccessDeniedException"
            | "MissingAuthenticationToken"
            | "MissingAuthenticationTokenException"
            | "NotAuthorized"
            | "UnauthorizedOperation"
            | "UnrecognizedClientException" => Self::Denied,
            "ClusterNotFoundException"
            | "ImageNotFoundException"
            | "LayersNotFoundException"
            | "LifecyclePolicyNotFoundException"
            | "ParameterNotFound"
            | "RepositoryNotFoundException"
            | "RepositoryPolicyNotFoundException"
            | "ResourceNotFoundException"
            | "StateMachineDoesNotExist"
            | "TaskDoesNotExist" => Self::NotFound,
            _ => return None,
        })
    }
}
