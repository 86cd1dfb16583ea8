//! `GET /vm.memory-stats`

use axum::Json;
use axum::extract::State;

use super::{Api, blocking};
use crate::ApiError;
use crate::error::Errors;
use crate::types::MemoryStats;

/// Tells figures about the memory of a machine that runs.
#[utoipa::path(
    get,
    path = "/vm.memory-stats",
    operation_id = "vm.memory-stats",
    responses((status = 200, description = "The figures.", body = MemoryStats), Errors)
)]
pub async fn memory_stats(State(api): State<Api>) -> Result<Json<MemoryStats>, ApiError> {
    blocking(api, |api| Ok(api.guest()?.memory().statistics().into())).await.map(Json)
}

#[cfg(test)]
mod tests {
    use crate::testing::{Server, created, running};

    #[tokio::test]
    async fn figures_of_a_machine_that_runs() {
        let server = Server::new();
        server.get("/vm.memory-stats").await.fails(404, "create one");
        created(&server).await;
        server.get("/vm.memory-stats").await.fails(405, "not booted");
        let stats = running().await.get("/vm.memory-stats").await.json();
        assert_eq!((&stats["ram_bytes"], &stats["private_bytes"]), (&(64 << 20).into(), &(64 << 20).into()));
    }
}
