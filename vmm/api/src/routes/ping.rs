//! `GET /vmm.ping`

use axum::Json;

use crate::error::Errors;
use crate::types::Ping;

/// Tells who answers.
#[utoipa::path(
    get,
    path = "/vmm.ping",
    operation_id = "vmm.ping",
    responses((status = 200, description = "Umbra answers.", body = Ping), Errors)
)]
pub async fn ping() -> Json<Ping> {
    let version = env!("CARGO_PKG_VERSION");
    Json(Ping {
        build_version: format!("umbra-{version}"),
        version: version.into(),
        pid: std::process::id().into(),
        features: vec!["kvm".into()],
    })
}

#[cfg(test)]
mod tests {
    use crate::testing::Server;

    #[tokio::test]
    async fn tells_who_answers() {
        let pong = Server::new().get("/vmm.ping").await.json();
        assert_eq!(pong["pid"], std::process::id());
        assert!(pong["build_version"].as_str().unwrap().starts_with("umbra-"));
    }
}
