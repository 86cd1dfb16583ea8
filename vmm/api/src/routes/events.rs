//! `GET /vm.events`

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use futures_util::Stream;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::{Api, blocking};
use crate::ApiError;
use crate::error::Errors;
use crate::types::MemoryStats;

/// How often conversions are told of: all that were made since, in one event.
const CONVERSIONS_INTERVAL: Duration = Duration::from_secs(1);

/// Streams what happens, as server-sent events with Cloud Hypervisor's objects: life cycle, refused accesses, and
/// conversions, which are summed up over a second. Who is too slow learns how many events were missed.
#[utoipa::path(
    get,
    path = "/vm.events",
    operation_id = "vm.events",
    responses(
        (status = 200, description = "Events, without end.", body = String, content_type = "text/event-stream"),
        Errors
    )
)]
pub async fn events(State(api): State<Api>) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let room = api.listener()?;
    let ending = || ApiError::new(StatusCode::CONFLICT, "the process is ending");
    let mut ticks = interval(CONVERSIONS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let events = api.hub().listen().ok_or_else(ending)?;
    let before = statistics(&api).await;
    let listener = Listener { events, before, ticks, api, _room: room };
    let stream = futures_util::stream::unfold(listener, |mut listener| async {
        let event = listener.next().await?;
        Some((Ok(event), listener))
    });
    Ok(Sse::new(stream).keep_alive(KeepAlive::default()))
}

struct Listener {
    events: Receiver<Arc<Value>>,
    ticks: Interval,
    before: Option<MemoryStats>,
    api: Api,
    _room: OwnedSemaphorePermit,
}

impl Listener {
    /// The next event; `None` once there will be no more.
    async fn next(&mut self) -> Option<Event> {
        loop {
            tokio::select! {
                event = self.events.recv() => match event {
                    Ok(event) => return Some(as_event(&event)),
                    Err(RecvError::Lagged(missed)) => return Some(as_event(&missed_events(missed))),
                    Err(RecvError::Closed) => return None,
                },
                _ = self.ticks.tick() => {
                    let now = statistics(&self.api).await;
                    let before = std::mem::replace(&mut self.before, now);
                    if let Some(event) = now.and_then(|now| conversions(before.as_ref(), &now)) {
                        return Some(as_event(&event));
                    }
                }
            }
        }
    }
}

fn missed_events(count: u64) -> Value {
    json!({ "source": "api", "event": "missed", "properties": { "events": count } })
}

async fn statistics(api: &Api) -> Option<MemoryStats> {
    blocking(api.clone(), |api| Ok(api.statistics())).await.ok().flatten()
}

/// What was converted since; `None` if nothing was. A machine that was built anew counts from zero.
fn conversions(before: Option<&MemoryStats>, now: &MemoryStats) -> Option<Value> {
    let since = |count: fn(&MemoryStats) -> u64| {
        let before = before.map_or(0, count);
        count(now).checked_sub(before).unwrap_or(count(now))
    };
    let explicit = since(|stats| stats.conversions_explicit);
    let implicit = since(|stats| stats.conversions_implicit);
    let host = since(|stats| stats.conversions_host);
    let failed = since(|stats| stats.conversions_failed);
    let refused = since(|stats| stats.accesses_refused);
    [explicit, implicit, host, failed, refused].iter().any(|count| *count != 0).then(|| {
        json!({ "source": "memory", "event": "conversions", "properties": {
            "explicit": explicit, "implicit": implicit, "host": host, "failed": failed, "accesses_refused": refused,
            "private_bytes": now.private_bytes, "shared_bytes": now.shared_bytes,
        } })
    })
}

fn as_event(event: &Value) -> Event {
    let name = format!("{}.{}", event["source"].as_str().unwrap_or("?"), event["event"].as_str().unwrap_or("?"));
    // JSON has no line breaks of its own.
    Event::default().event(name).data(event.to_string())
}

#[cfg(test)]
mod tests {
    use crate::testing::{Server, created};

    #[tokio::test]
    async fn what_happens_is_told_as_it_happens() {
        let server = Server::new();
        let mut events = server.stream("/vm.events").await;
        created(&server).await;
        server.put("/vm.boot", None).await.is(204);
        server.put("/vm.pause", None).await.is(204);
        for name in ["vm.created", "vm.booted", "vm.paused", "memory.conversions"] {
            events.until(&format!("event: {name}\n")).await;
        }
        server.close();
        events.end().await;
    }

    #[tokio::test]
    async fn a_life_is_told_in_order_and_nothing_that_did_not_happen() {
        let server = Server::new();
        let mut events = server.stream("/vm.events").await;
        server.put("/vm.delete", None).await.is(204);
        server.put("/vm.boot", None).await.fails(404, "create one");
        created(&server).await;
        server.put("/vm.pause", None).await.fails(405, "not booted");
        for operation in ["boot", "pause", "resume", "reboot", "shutdown", "boot", "pause", "delete"] {
            server.put(&format!("/vm.{operation}"), None).await.is(204);
        }
        created(&server).await;
        server.put("/vm.boot", None).await.is(204);
        server.close();
        server.close();
        let boot = ["vm.booting", "vm.booted"];
        let expected = [
            &["vm.created"][..],
            &boot,
            &["vm.pausing", "vm.paused", "vm.resuming", "vm.resumed", "vm.rebooting"],
            &boot,
            &["vm.rebooted", "vm.shutdown"],
            &boot,
            &["vm.pausing", "vm.paused", "vm.shutdown", "vm.deleted", "vm.created"],
            &boot,
            &["vm.shutdown", "vm.deleted", "vmm.shutdown"],
        ];
        assert_eq!(events.end().await, expected.concat());
    }

    #[tokio::test]
    async fn so_many_may_listen_and_who_goes_makes_room() {
        let server = Server::new();
        let mut listening = vec![];
        for _ in 0..16 {
            listening.push(server.stream("/vm.events").await);
        }
        server.get("/vm.events").await.fails(429, "listen already");
        listening.pop();
        server.stream("/vm.events").await;
    }
}
