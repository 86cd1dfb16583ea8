//! The OpenAPI document and the routes, both from the list in [`crate::routes`].

use axum::Router;
use axum::extract::OriginalUri;
use axum::http::{Method, StatusCode};
use utoipa::OpenApi;
use utoipa::openapi::{ArrayBuilder, ObjectBuilder, Type};
use utoipa_axum::router::OpenApiRouter;

use crate::routes::{self, Api};
use crate::{ApiError, ROOT};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Umbra",
        description = "One virtual machine whose memory no process on the host can map, over a unix socket. \
            Names and forms are Cloud Hypervisor's; vm.memory-*, vm.events and vmm.metrics are Umbra's own."
    ),
    servers((url = "http://localhost/api/v1"))
)]
struct Head;

/// The document.
pub fn document() -> utoipa::openapi::OpenApi {
    parts().1
}

/// The routes, and the document of them.
fn parts() -> (Router<Api>, utoipa::openapi::OpenApi) {
    let (router, mut document) = OpenApiRouter::with_openapi(Head::openapi()).merge(routes::all()).split_for_parts();
    let text = ObjectBuilder::new().schema_type(Type::String).build();
    let chain = ArrayBuilder::new().items(text).description(Some("The error, then what caused it, and so on.")).build();
    document.components.get_or_insert_default().schemas.insert("ErrorChain".into(), chain.into());
    (router, document)
}

/// The whole service.
pub(crate) fn service(api: Api) -> Router {
    let not_found = |OriginalUri(uri): OriginalUri| async move {
        ApiError::new(
            StatusCode::NOT_FOUND,
            format!("there is no {}: {ROOT}/openapi.json lists what there is", uri.path()),
        )
    };
    let wrong_method = |method: Method, OriginalUri(uri): OriginalUri| async move {
        ApiError::wrong_order(format!("{} does not have the method {method}", uri.path()))
    };
    Router::new().nest(ROOT, parts().0.method_not_allowed_fallback(wrong_method)).fallback(not_found).with_state(api)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_has_a_name_of_its_own_and_says_what_it_does() {
        let document = serde_json::to_value(document()).unwrap();
        let mut names = std::collections::BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let name = operation["operationId"].as_str().unwrap();
                assert!(names.insert(name.to_owned()), "{name} twice");
                assert!(name.starts_with(&path[1..]), "{method} {path} is called {name}");
                assert!(operation["summary"].as_str().is_some_and(|text| text.ends_with('.')), "{name}");
                assert!(operation["responses"]["400"].is_object(), "{name}");
            }
        }
        assert!(names.len() > 35, "{names:?}");
    }

    #[test]
    fn unknown_fields_are_ruled_out_in_the_document_too() {
        let document = serde_json::to_value(document()).unwrap();
        for name in ["VmConfig", "DiskConfig", "NetConfig", "ConversionRequest", "PolicyConfig", "Resize"] {
            assert_eq!(document["components"]["schemas"][name]["additionalProperties"], false, "{name}");
        }
    }
}
