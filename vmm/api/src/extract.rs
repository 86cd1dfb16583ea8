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
        match find_misshapen(&given, &taken) {
            None => Ok(Self(value)),
            Some(Misshapen { place, given, taken }) => Err(ApiError::bad_request(format!(
                "the body is not as it must be, at {}: there is {given} where {taken} belongs",
                if place.is_empty() { "its top" } else { place.trim_start_matches('.') }
            ))),
        }
    }
}

/// Something of one kind that was taken for another.
struct Misshapen {
    /// `.disks[1].path`, empty for the whole.
    place: String,
    given: &'static str,
    taken: &'static str,
}

/// Finds what is not of the kind that it was taken for: serde takes arrays for structures, and objects for names.
fn find_misshapen(given: &Value, taken: &Value) -> Option<Misshapen> {
    let inside = |place: String, found: Misshapen| Misshapen { place: place + &found.place, ..found };
    match (given, taken) {
        (Value::Object(given), Value::Object(taken)) => taken
            .iter()
            .find_map(|(name, taken)| Some(inside(format!(".{name}"), find_misshapen(given.get(name)?, taken)?))),
        (Value::Array(given), Value::Array(taken)) => {
            let mut items = given.iter().zip(taken).enumerate();
            items.find_map(|(i, (given, taken))| Some(inside(format!("[{i}]"), find_misshapen(given, taken)?)))
        }
        _ if kind(given) == kind(taken) => None,
        _ => Some(Misshapen { place: String::new(), given: kind(given), taken: kind(taken) }),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a switch",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_taken_for_another_kind_is_found_where_it_is() {
        let taken = json!({ "list": [{ "a": "x" }, { "a": "y", "made_up": 1 }], "n": 1, "any": { "of": [null] } });
        let place = |given| find_misshapen(&given, &taken).map(|found| found.place);
        let fine = json!({ "list": [{ "a": "x" }, { "a": "y" }], "n": 2, "null": null, "any": { "of": [null] } });
        assert_eq!(place(fine), None);
        for (given, expected) in [
            (json!([]), ""),
            (json!({ "list": [{ "a": "x" }, ["y"]] }), ".list[1]"),
            (json!({ "list": [{ "a": "x" }, { "a": { "y": null } }] }), ".list[1].a"),
            (json!({ "list": { "0": "x" } }), ".list"),
            (json!({ "n": true }), ".n"),
            (json!({ "any": null }), ".any"),
        ] {
            assert_eq!(place(given).as_deref(), Some(expected));
        }
    }
}
