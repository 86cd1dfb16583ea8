//! Cloud Hypervisor's endpoints that Umbra does not have. Each answers why, whatever it is asked.

use axum::http::StatusCode;
use axum::routing::{MethodRouter, get, put};
use utoipa::IntoResponses;
use utoipa::openapi::path::{HttpMethod, OperationBuilder, PathItem};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::{ContentBuilder, Required, Responses};
use utoipa_axum::router::OpenApiRouter;

use super::Api;
use crate::ApiError;
use crate::error::Errors;
use crate::types::anything;

/// They can't be had: private memory can't be read from outside.
const UNREADABLE: &str = "private memory can't be read from outside the guest, not even by Umbra";
/// They can't be had: private memory can't be written from outside.
const UNWRITABLE: &str = "private memory can't be written from outside the guest, not even by Umbra";
/// They can't be had: another process would have to map all of guest memory.
const UNMAPPABLE: &str = "it needs guest memory mapped into another process, which unmappable memory rules out";

/// Path, method and reason.
pub const UNSUPPORTED: [(&str, HttpMethod, &str); 14] = [
    ("/vm.snapshot", HttpMethod::Put, UNREADABLE),
    ("/vm.restore", HttpMethod::Put, UNWRITABLE),
    ("/vm.coredump", HttpMethod::Put, UNREADABLE),
    ("/vm.send-migration", HttpMethod::Put, UNREADABLE),
    ("/vm.receive-migration", HttpMethod::Put, UNWRITABLE),
    ("/vm.add-fs", HttpMethod::Put, UNMAPPABLE),
    ("/vm.add-generic-vhost-user", HttpMethod::Put, UNMAPPABLE),
    ("/vm.add-user-device", HttpMethod::Put, UNMAPPABLE),
    ("/vm.add-vdpa", HttpMethod::Put, "its hardware would need all of guest memory mapped"),
    ("/vm.add-device", HttpMethod::Put, "host devices would need all of guest memory mapped"),
    ("/vm.add-pmem", HttpMethod::Put, "there is no persistent memory device: add a disk with vm.add-disk"),
    ("/vm.resize-disk", HttpMethod::Put, "disks have the size of their image: remove the disk and add it anew"),
    ("/vm.resize-zone", HttpMethod::Put, "memory is in one zone and does not grow"),
    ("/vm.balloon-stats", HttpMethod::Get, "the balloon has no statistics"),
];

/// Adds them to the others.
pub(super) fn add(mut router: OpenApiRouter<Api>) -> OpenApiRouter<Api> {
    for (path, method, reason) in UNSUPPORTED {
        let answer = move || async move { error(path, reason) };
        let mut responses = Responses::new();
        responses.responses.extend(Errors::responses());
        let operation = OperationBuilder::new()
            .operation_id(Some(path.trim_start_matches('/')))
            .summary(Some(format!("Not supported: {reason}.")))
            .description(Some("Cloud Hypervisor has this endpoint, and Umbra does not."))
            .responses(responses);
        let is_get = matches!(method, HttpMethod::Get);
        let routes: MethodRouter<Api> = if is_get { get(answer) } else { put(answer) };
        let body = RequestBodyBuilder::new()
            .content("application/json", ContentBuilder::new().schema(Some(anything())).build())
            .required(Some(Required::False))
            .build();
        let operation = operation.request_body((!is_get).then_some(body));
        router.get_openapi_mut().paths.paths.insert(path.into(), PathItem::new(method, operation));
        router = router.route(path, routes);
    }
    router
}

fn error(path: &str, reason: &str) -> ApiError {
    let name = path.trim_start_matches('/');
    ApiError { status: StatusCode::BAD_REQUEST, chain: vec![format!("{name} is not supported"), reason.into()] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::running;

    #[tokio::test]
    async fn each_says_why() {
        let server = running().await;
        for (path, method, reason) in UNSUPPORTED {
            for body in [None, Some(r#"{"destination_url":"file:///tmp/x"}"#.to_owned())] {
                let answer = match method {
                    HttpMethod::Get => server.get(path).await,
                    _ => server.put(path, body).await,
                };
                answer.fails(400, reason);
                answer.fails(400, "is not supported");
            }
        }
        assert_eq!(server.get("/vm.info").await.json()["state"], "Running");
    }

    #[tokio::test]
    async fn what_nobody_has_is_not_found_and_wrong_methods_are_told_the_right_one() {
        let server = running().await;
        server.get("/vm.fly").await.fails(404, "vm.fly");
        let answer = server.get("/vm.boot").await;
        answer.fails(405, "method");
        assert_eq!(answer.headers["allow"], "PUT");
    }
}
