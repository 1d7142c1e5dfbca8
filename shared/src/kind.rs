//! Kinds of failures, and their names in the state machine.

use aws_runtime::retries::classifiers::{THROTTLING_ERRORS, TRANSIENT_ERRORS};
use aws_sdk_ecr::error::{ProvideErrorMetadata, SdkError};

/// What kind of failure an [`Error`](crate::Error) or a failed task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A parameter of the stack or an execution's input is invalid.
    Configuration,
    /// A credential is missing or invalid.
    Credential,
    /// An entry of the image list is invalid.
    ImageList,
    /// The source has fewer images than `minImages`.
    TooFewImages,
    /// The stack's parameters do not allow this.
    NotAllowed,
    /// The run would copy more than `maxImages` or `maxBytes`.
    TooMuchToCopy,
    /// The payload of an invocation does not have the expected form.
    Event,
    /// ECS did not start the task, and may start it later.
    NoCapacity,
    /// The task never ran, for example because its image could not be pulled.
    TaskNotStarted,
    /// The task failed, or copied only some of its images. A retry may copy the others.
    TaskFailed,
    /// Every image that the task did not copy would fail again.
    ImagesRefused,
    /// Too many requests.
    Throttled,
    /// The service failed, or did not answer.
    Unavailable,
    /// The session of a role has expired. A retry gets a new session. An expired session in a secret is a
    /// [`Credential`](Self::Credential) instead.
    Expired,
    /// Access is denied.
    Denied,
    /// The repository, task or other resource does not exist.
    NotFound,
    /// The request was rejected, and would be rejected again.
    Invalid,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 17] = [
        Self::Configuration,
        Self::Credential,
        Self::ImageList,
        Self::TooFewImages,
        Self::NotAllowed,
        Self::TooMuchToCopy,
        Self::Event,
        Self::NoCapacity,
        Self::TaskNotStarted,
        Self::TaskFailed,
        Self::ImagesRefused,
        Self::Throttled,
        Self::Unavailable,
        Self::Expired,
        Self::Denied,
        Self::NotFound,
        Self::Invalid,
    ];

    /// The name that the state machine's Retry and Catch match on.
    pub fn name(self) -> &'static str {
        match self {
            Self::Configuration => "InvalidConfiguration",
            Self::Credential => "InvalidCredential",
            Self::ImageList => "InvalidImageList",
            Self::TooFewImages => "TooFewImages",
            Self::NotAllowed => "NotAllowed",
            Self::TooMuchToCopy => "TooMuchToCopy",
            Self::Event => "InvalidEvent",
            Self::NoCapacity => "NoCapacity",
            Self::TaskNotStarted => "TaskNotStarted",
            Self::TaskFailed => "TaskFailed",
            Self::ImagesRefused => "ImagesRefused",
            Self::Throttled | Self::Unavailable | Self::Expired => "ServiceUnavailable",
            Self::Denied => "AccessDenied",
            Self::NotFound | Self::Invalid => "RequestRefused",
        }
    }

    /// Whether the same request may succeed later.
    pub fn is_transient(self) -> bool {
        matches!(self, Self::Throttled | Self::Unavailable | Self::Expired)
    }

    pub(crate) fn of_status(status: u16) -> Self {
        match status {
            401 | 403 => Self::Denied,
            404 => Self::NotFound,
            429 => Self::Throttled,
            500.. => Self::Unavailable,
            _ => Self::Invalid,
        }
    }

    /// `action` is the IAM action of the call: it begins with the service.
    pub(crate) fn of_aws<E: ProvideErrorMetadata>(action: &str, error: &SdkError<E>) -> Self {
        let SdkError::ServiceError(answer) = error else {
            let is_ours = matches!(error, SdkError::ConstructionFailure(_));
            return if is_ours { Self::Invalid } else { Self::Unavailable };
        };
        let (service, _) = action.split_once(':').unwrap_or_default();
        // ECS passes on EC2's error in an InvalidParameterException of its own:
        // `Error retrieving subnet information for […]: Rate exceeded (ErrorCode: Throttling)`.
        let inner = || {
            let (_, inner) = answer.err().message()?.rsplit_once("(ErrorCode: ")?;
            Self::of_code(service, inner.split(')').next()?)
        };
        let code = || Self::of_code(service, answer.err().code()?);
        inner().or_else(code).unwrap_or_else(|| Self::of_status(answer.raw().status().as_u16()))
    }

    /// `None` if the HTTP status says more than the code. Services with JSON protocols return 400 for all errors of the client.
    fn of_code(service: &str, code: &str) -> Option<Self> {
        Some(match code {
            // The services' documentation: a quota of resources; only for DynamoDB a quota of requests.
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use aws_sdk_ecr::config::http::HttpResponse;
    use aws_sdk_ecr::error::ErrorMetadata;
    use serde_json::Value;

    use super::*;

    /// The state machine's definition, with 1 in place of each `${…}`.
    fn definition() -> Value {
        let template = include_str!("../../template.yaml");
        let (_, behind) = template.split_once("DefinitionString: !Sub |\n").expect("the template has a definition");
        let lines = behind.lines().take_while(|line| line.is_empty() || line.starts_with("        "));
        let mut text = lines.collect::<String>();
        while let Some(start) = text.find("${") {
            let end = start + text[start..].find('}').expect("a reference ends");
            text.replace_range(start..=end, "1");
        }
        serde_json::from_str(&text).expect("the definition is JSON")
    }

    /// The error names in a state's Retry, without those of AWS.
    fn retried(state: &Value) -> BTreeSet<String> {
        let retriers = state["Retry"].as_array().expect("the state has a Retry");
        let names = retriers.iter().flat_map(|retrier| retrier["ErrorEquals"].as_array().into_iter().flatten());
        names.filter_map(Value::as_str).filter(|name| !name.contains('.')).map(str::to_owned).collect()
    }

    #[test]
    fn the_state_machine_retries_exactly_the_transient_failures() {
        let definition = definition();
        let copying = &definition["States"]["CopyImages"]["ItemProcessor"]["States"];
        let transient = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(
            retried(&copying["CopyBatch"]),
            transient(&["NoCapacity", "ServiceUnavailable", "TaskFailed", "TaskNotStarted"])
        );
        assert_eq!(retried(&copying["RecordStatus"]), transient(&["ServiceUnavailable"]));
        assert_eq!(retried(&definition["States"]["ListImages"]), transient(&["ServiceUnavailable"]));
    }

    #[test]
    fn every_retried_name_is_the_name_of_a_kind() {
        let definition = definition();
        let copying = &definition["States"]["CopyImages"]["ItemProcessor"]["States"];
        let names: BTreeSet<_> = Kind::ALL.map(Kind::name).into_iter().collect();
        for state in [&copying["CopyBatch"], &copying["RecordStatus"], &definition["States"]["ListImages"]] {
            for name in retried(state) {
                assert!(names.contains(name.as_str()), "{name}");
            }
        }
    }

    fn kind_of(operation: &str, status: u16, error: ErrorMetadata) -> Kind {
        let answer = HttpResponse::new(status.try_into().expect("it is a status"), "".into());
        Kind::of_aws(operation, &SdkError::service_error(error, answer))
    }

    #[test]
    fn each_recorded_code_of_aws_is_of_its_kind() {
        let recorded: Value = serde_json::from_str(include_str!("../tests/data/errors.json")).expect("it is JSON");
        let text = |error: &Value, key: &str| error[key].as_str().map(str::to_owned);
        for recorded in recorded["aws"].as_array().expect("it is a list") {
            let Some(code) = text(recorded, "code") else { continue };
            let error =
                ErrorMetadata::builder().code(&code).message(text(recorded, "message").unwrap_or_default()).build();
            let status = recorded["status"].as_u64().and_then(|it| it.try_into().ok()).expect("it has a status");
            let kind = kind_of(&text(recorded, "operation").expect("it has one"), status, error);
            assert_eq!(Some(format!("{kind:?}")), text(recorded, "kind"), "{recorded}");
        }
    }

    #[test]
    fn an_answer_without_a_code_is_of_the_kind_of_its_status() {
        for (status, kind) in [
            (400, Kind::Invalid),
            (401, Kind::Denied),
            (403, Kind::Denied),
            (404, Kind::NotFound),
            (429, Kind::Throttled),
            (500, Kind::Unavailable),
            (503, Kind::Unavailable),
        ] {
            assert_eq!(kind_of("s3:PutObject", status, ErrorMetadata::builder().build()), kind, "{status}");
        }
    }

    #[test]
    fn exactly_the_transient_kinds_have_the_name_that_every_state_retries() {
        let retried = retried(&definition()["States"]["ListImages"]);
        for kind in Kind::ALL {
            assert_eq!(kind.is_transient(), retried.contains(kind.name()), "{kind:?}");
        }
    }

    #[test]
    fn a_request_that_timed_out_may_succeed_later_whatever_the_status() {
        let error = ErrorMetadata::builder().code("RequestTimeout").build();
        assert_eq!(kind_of("s3:PutObject", 400, error), Kind::Unavailable);
    }
}
