//! What a request brings: bodies and queries, strictly.
//!
//! The type of the content is not asked for: `ch-remote` does not name it.

use axum::body::{Bytes, HttpBody};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::ApiError;
use crate::server::{BODY_LIMIT, BODY_TIMEOUT};

/// A JSON body, as a whole of this type.
pub struct Body<T>(pub T);

/// No body at all.
pub struct NoBody;

/// The query, of this type.
pub struct Query<T>(pub T);

async fn bytes(request: Request) -> Result<Bytes, ApiError> {
    let too_large =
        || ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body has more than {BODY_LIMIT} bytes"));
    // What says beforehand that it is too large is not read.
    if request.body().size_hint().lower() > BODY_LIMIT as u64 {
        return Err(too_large());
    }
    let body = Limited::new(request.into_body(), BODY_LIMIT).collect();
    let body = tokio::time::timeout(BODY_TIMEOUT, body)
        .await
        .map_err(|_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"))?;
    match body {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
        Err(error) => Err(ApiError::caused(StatusCode::BAD_REQUEST, "the body can't be read", &*error)),
    }
}

impl<T: DeserializeOwned + Serialize, S: Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let bytes = bytes(request).await?;
        if bytes.is_empty() {
            return Err(ApiError::bad_request("this request needs a JSON body, and there is none"));
        }
        let mut json = serde_json::Deserializer::from_slice(&bytes);
        let bad = |error: &dyn std::error::Error| {
            ApiError::caused(StatusCode::BAD_REQUEST, "the body is not as it must be", error)
        };
        let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let mut error = ApiError::caused(
                StatusCode::BAD_REQUEST,
                format!("the body is not as it must be, at {}", error.path()),
                error.inner(),
            );
            error.chain.dedup();
            error
        })?;
        json.end().map_err(|error| bad(&error))?;
        let given = serde_json::from_slice(&bytes).map_err(|error| bad(&error))?;
        let taken = serde_json::to_value(&value).map_err(|error| bad(&error))?;
        match has_shape(&given, &taken) {
            true => Ok(Self(value)),
            false => {
                Err(ApiError::bad_request("the body is not as it must be: there is an array where an object belongs"))
            }
        }
    }
}

/// Whether what is taken for an object was given as one: serde takes arrays for structures, too.
fn has_shape(given: &Value, taken: &Value) -> bool {
    match (given, taken) {
        (Value::Object(given), Value::Object(taken)) => {
            taken.iter().all(|(name, taken)| given.get(name).is_none_or(|given| has_shape(given, taken)))
        }
        (_, Value::Object(_)) => false,
        (Value::Array(given), Value::Array(taken)) => {
            given.iter().zip(taken).all(|(given, taken)| has_shape(given, taken))
        }
        _ => true,
    }
}

impl<S: Sync> FromRequest<S> for NoBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        match bytes(request).await?.is_empty() {
            true => Ok(Self),
            false => Err(ApiError::bad_request("this request takes no body")),
        }
    }
}

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let bad = |error: &dyn std::error::Error| {
            ApiError::caused(StatusCode::BAD_REQUEST, "the query is not as it must be", error)
        };
        axum::extract::Query::<T>::try_from_uri(&parts.uri).map(|query| Self(query.0)).map_err(|error| bad(&error))
    }
}
