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
            (
                r#"{"payload":{"kernel":"k"},"vsock":[3,"socket",null,null,null,null]}"#,
                "at vsock: there is an array where an object belongs",
            ),
            (
                r#"{"payload":{"kernel":"k"},"serial":{"mode":{"Null":null}}}"#,
                "at serial.mode: there is an object where a string belongs",
            ),
            (
                r#"{"payload":{"kernel":"k"},"platform":{"isolation":{"none":null}}}"#,
                "at platform.isolation: there is an object where a string belongs",
            ),
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
    async fn no_more_devices_than_the_bus_has_slots() {
        let many = |kind: &str, device: &str, count: usize, rest: &str| {
            format!(r#"{{"payload":{{"kernel":"/k"}},"{kind}":[{}]{rest}}}"#, vec![device; count].join(","))
        };
        let more = r#","console":{"mode":"Null"},"balloon":{"size":0},"vsock":{"cid":3,"socket":"/v"}"#;
        // Random numbers always take one.
        for (kind, device, most, rest) in
            [("disks", r#"{"path":"/d"}"#, 30, ""), ("net", "{}", 30, ""), ("disks", r#"{"path":"/d"}"#, 27, more)]
        {
            let server = Server::new();
            for count in [most + 1, 40_000] {
                server.put("/vm.create", Some(many(kind, device, count, rest))).await.fails(400, "slots for 31");
            }
            server.put("/vm.create", Some(many(kind, device, most, rest))).await.is(204);
            server.put("/vm.add-disk", Some(r#"{"path":"/d"}"#.into())).await.fails(409, "slots for 31");
            server.put("/vm.add-net", Some("{}".into())).await.fails(409, "slots for 31");
            let devices = server.get("/vm.info").await.json()["config"][kind].as_array().map(Vec::len);
            assert_eq!(devices, Some(most), "one that was refused is not noted");
        }
    }

    #[tokio::test]
    async fn a_body_too_large_is_refused() {
        let body = format!(r#"{{"payload":{{"kernel":"{}"}}}}"#, "k".repeat(crate::server::BODY_LIMIT));
        Server::new().put("/vm.create", Some(body)).await.fails(413, "more than");
    }
}
