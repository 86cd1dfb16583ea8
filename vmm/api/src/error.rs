//! What a request that fails gets: a status, and a JSON array of strings, the error and its causes from top to root, as
//! Cloud Hypervisor has it.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder};
use vmm::memory::ConversionError;
use vmm::memory::conversion::SetupError;

use crate::convert::ConfigError;

/// An error and its causes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// Whose fault it is.
    pub status: StatusCode,
    /// The error, then what caused it, and so on.
    pub chain: Vec<String>,
}

impl ApiError {
    /// An error without a cause.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, chain: vec![message.into()] }
    }

    /// The same with a cause.
    #[must_use]
    pub fn because(mut self, cause: impl Into<String>) -> Self {
        self.chain.push(cause.into());
        self
    }

    /// An error that another one caused.
    pub fn caused(status: StatusCode, message: impl Into<String>, cause: &dyn std::error::Error) -> Self {
        let causes = std::iter::successors(Some(cause), |cause| cause.source()).map(ToString::to_string);
        Self { status, chain: std::iter::once(message.into()).chain(causes).collect() }
    }

    /// A request that makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// A machine that is not there.
    pub fn not_created() -> Self {
        Self::new(StatusCode::NOT_FOUND, "there is no machine: create one with vm.create")
    }

    /// A machine that is not where it must be in its life.
    pub fn wrong_order(message: impl Into<String>) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, message)
    }

    /// What the machine said. What the operator's request can cause is the operator's to mend.
    pub fn from_machine(message: impl Into<String>, error: &vmm::Error) -> Self {
        use vmm::Error::{
            Conversion, DeviceName, Ended, GuestMemory, Hypervisor, Memory, NoInterruptLine, NoSlot, NoSuchDevice,
            System, Vcpu,
        };
        let status = match error {
            Memory(error) if is_too_much(error) => StatusCode::BAD_REQUEST,
            Hypervisor(_) | Memory(_) | GuestMemory { .. } | Conversion(_) | System { .. } | Vcpu { .. } => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            NoSuchDevice { .. } => StatusCode::NOT_FOUND,
            Ended | NoSlot { .. } | NoInterruptLine | DeviceName { .. } => StatusCode::CONFLICT,
            _ => StatusCode::BAD_REQUEST,
        };
        Self::caused(status, message, error)
    }

    /// A conversion that was not made.
    pub fn from_conversion(error: &ConversionError) -> Self {
        let status = match error {
            ConversionError::Refused { .. } => StatusCode::FORBIDDEN,
            ConversionError::Interrupted => {
                return Self::new(StatusCode::CONFLICT, "the memory was not converted, or not all of it")
                    .because("the machine is paused: resume it with vm.resume, and ask again");
            }
            ConversionError::NotConvertible { .. } | ConversionError::Lent { .. } | ConversionError::Stopped => {
                StatusCode::CONFLICT
            }
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::caused(status, "the memory was not converted", error)
    }
}

/// Whether it is the size of the memory that was asked for: no host has so much, or takes it in one piece.
fn is_too_much(error: &SetupError) -> bool {
    matches!(error, SetupError::Map(_) | SetupError::Hypervisor(hypervisor::Error::RegionTooLarge { .. }))
}

impl From<ConfigError> for ApiError {
    fn from(error: ConfigError) -> Self {
        Self::caused(StatusCode::BAD_REQUEST, "the configuration can't be honoured", &error)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        tracing::info!(status = self.status.as_u16(), "refused: {}", self.chain.join(": "));
        (self.status, Json(self.chain)).into_response()
    }
}

/// The errors that any operation may answer with, for the document.
pub struct Errors;

impl utoipa::IntoResponses for Errors {
    fn responses() -> std::collections::BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        let errors = [
            (400, "The request makes no sense, or asks for what can't be honoured."),
            (403, "The machine's policy forbids it, or the API is another user's."),
            (404, "There is no machine, or no such thing in it."),
            (405, "The machine is not where it must be in its life."),
            (409, "There is one already, or it does not fit what there is."),
            (413, "The body is too large."),
            (408, "The body did not come in time."),
            (429, "As many of these are under way as may be."),
            (500, "Umbra or the host failed."),
        ];
        let response = |(status, description): (u16, &str)| {
            let schema = Ref::from_schema_name("ErrorChain");
            let content = ContentBuilder::new().schema(Some(schema)).build();
            let response = ResponseBuilder::new().description(description).content("application/json", content);
            (status.to_string(), response.build().into())
        };
        errors.into_iter().map(response).collect()
    }
}

#[cfg(test)]
mod tests {
    use hypervisor::{Error, GpaRange};

    use super::*;

    #[test]
    fn more_memory_than_is_possible_is_the_clients_mistake_and_a_host_that_fails_is_not() {
        let status = |error: SetupError| ApiError::from_machine("the machine was not booted", &error.into()).status;
        let range = GpaRange::new(1 << 32, 12 << 40).unwrap();
        assert_eq!(status(Error::RegionTooLarge { range, limit: (1 << 31) - 1 }.into()), 400);
        let source = std::io::ErrorKind::OutOfMemory.into();
        assert_eq!(status(Error::Failed { operation: "make", subject: "a VM".into(), source }.into()), 500);
        assert_eq!(status(SetupError::Thread(std::io::ErrorKind::WouldBlock.into())), 500);
    }
}
