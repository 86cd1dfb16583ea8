//! `PUT /vm.create`

use axum::extract::State;
use axum::http::StatusCode;

use super::{Api, DONE, blocking};
use crate::ApiError;
use crate::error::Errors;
use crate::extract::Body;
use crate::types::VmConfig;

/// Creates a machine, and does not boot it.
#[utoipa::path(
    put,
    path = "/vm.create",
    operation_id = "vm.create",
    request_body = VmConfig,
    responses((status = 204, description = "It was created."), Errors)
)]
pub async fn create(State(api): State<Api>, Body(config): Body<VmConfig>) -> Result<StatusCode, ApiError> {
    blocking(api, |api| api.create(config)).await?;
    Ok(DONE)
}

#[cfg(test)]
mod tests {
    use crate::testing::{Server, created};

    #[tokio::test]
    async fn one_machine_at_a_time() {
        let server = Server::new();
        created(&server).await;
        assert_eq!(server.get("/vm.info").await.json()["state"], "Created");
        server.put("/vm.create", Some(crate::testing::create("/k"))).await.fails(409, "vm.delete");
    }

    #[tokio::test]
    async fn mistakes_are_named_and_create_nothing() {
        let server = Server::new();
        let mistakes = [
            ("", "needs a JSON body"),
            ("{", "EOF"),
            ("[]", "VmConfig"),
            (r#"{"payload":{"kernel":"k"},"vsock":[3,"socket",null,null,null,null]}"#, "an array where"),
            ("{}", "payload"),
            (r#"{"payload":{}}"#, "payload.kernel"),
            (r#"{"payload":{"kernel":"k"},"memroy":{}}"#, "memroy"),
            (r#"{"payload":{"kernel":"k"}} x"#, "trailing"),
            (r#"{"payload":{"kernel":"k"},"payload":{"kernel":"k"}}"#, "duplicate"),
            (r#"{"payload":{"kernel":"k"},"memory":{"size":-1}}"#, "memory.size"),
            (r#"{"payload":{"kernel":"k"},"memory":{"size":"512M"}}"#, "memory.size"),
            (r#"{"payload":{"kernel":"k"},"disks":[{"path":"a"},{"path":"b","queue_size":3}]}"#, "disks[1].queue_size"),
            (r#"{"payload":{"kernel":"k"},"disks":[{"path":"a","id":"x"}],"net":[{"id":"x"}]}"#, "net[0].id"),
            (
                r#"{"payload":{"kernel":"k"},"platform":{"isolation":"none"},"memory":{"size":33554432,"unmappable":true}}"#,
                "contradict",
            ),
            (
                r#"{"payload":{"kernel":"k"},"platform":{"isolation":"software","access_platform":false}}"#,
                "access_platform=off",
            ),
            (
                r#"{"payload":{"kernel":"k"},"platform":{"isolation":"software"},"balloon":{"size":0}}"#,
                "a balloon and unmappable memory",
            ),
        ];
        for (body, word) in mistakes {
            server.put("/vm.create", Some(body.into())).await.fails(400, word);
        }
        server.get("/vm.info").await.fails(404, "there is no machine");
    }

    #[tokio::test]
    async fn a_body_too_large_is_refused() {
        let body = format!(r#"{{"payload":{{"kernel":"{}"}}}}"#, "k".repeat(crate::server::BODY_LIMIT));
        Server::new().put("/vm.create", Some(body)).await.fails(413, "more than");
    }
}
