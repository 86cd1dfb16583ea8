//! `GET /openapi.json`

use std::sync::LazyLock;

use axum::http::header;
use axum::response::IntoResponse;

use crate::document::document;
use crate::error::Errors;

static TEXT: LazyLock<String> = LazyLock::new(|| document().to_json().unwrap_or_default());

/// Tells the OpenAPI document of this API.
#[utoipa::path(
    get,
    path = "/openapi.json",
    operation_id = "openapi.json",
    responses((status = 200, description = "The document.", body = Object), Errors)
)]
pub async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], TEXT.as_str())
}

#[cfg(test)]
mod tests {
    use crate::testing::Server;

    #[tokio::test]
    async fn the_document_lists_itself() {
        let document = Server::new().get("/openapi.json").await.json();
        assert_eq!(document["openapi"], "3.1.0");
        assert_eq!(document["paths"]["/openapi.json"]["get"]["operationId"], "openapi.json");
    }
}
