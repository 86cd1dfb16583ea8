//! `GET /vmm.metrics`

use std::fmt::Write;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;

use super::{Api, blocking};
use crate::ApiError;
use crate::error::Errors;
use crate::types::{Counters, Latency, MemoryStats, VmState};

/// Prometheus' text format.
const TEXT: &str = "text/plain; version=0.0.4";

/// Tells figures in Prometheus' text format: the machine's state, its memory, its devices.
#[utoipa::path(
    get,
    path = "/vmm.metrics",
    operation_id = "vmm.metrics",
    responses(
        (status = 200, description = "The figures.", body = String, content_type = "text/plain"),
        Errors
    )
)]
pub async fn metrics(State(api): State<Api>) -> Result<impl IntoResponse, ApiError> {
    let text = blocking(api, |api| {
        let guest = api.guest().ok();
        let memory = guest.as_ref().map(|guest| guest.memory().statistics().into());
        let counters = guest.map(|guest| guest.counters()).unwrap_or_default();
        Ok(Text::of(api.state(), memory.as_ref(), &counters))
    });
    Ok(([(header::CONTENT_TYPE, TEXT)], text.await?))
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn of(state: Option<VmState>, memory: Option<&MemoryStats>, devices: &Counters) -> String {
        let mut text = Self::default();
        text.gauge("up", "Umbra answers.", "", &[("", 1)]);
        let states = [VmState::Created, VmState::Running, VmState::Paused, VmState::Shutdown];
        let names = states.map(|state| format!("{state:?}"));
        let samples: Vec<_> =
            names.iter().zip(states).map(|(name, each)| (&**name, (state == Some(each)).into())).collect();
        text.gauge("vm_state", "1 for the state that the machine is in.", "state", &samples);
        if let Some(memory) = memory {
            text.memory(memory);
        }
        text.devices(devices);
        text.0
    }

    fn memory(&mut self, m: &MemoryStats) {
        let bytes = [("private", m.private_bytes), ("shared", m.shared_bytes), ("converting", m.converting_bytes)];
        self.gauge("memory_bytes", "RAM by state; converting RAM is shared, too.", "state", &bytes);
        let kinds =
            [("explicit", m.conversions_explicit), ("implicit", m.conversions_implicit), ("host", m.conversions_host)];
        self.counter(
            "conversions_total",
            "Conversions that changed something, by what asked for them.",
            "kind",
            &kinds,
        );
        let failed = "Conversions that were refused or failed.";
        self.counter("conversions_failed_total", failed, "", &[("", m.conversions_failed)]);
        let waits = "Seconds that conversions waited for devices.";
        self.counter("conversion_wait_seconds_total", waits, "", &[("", m.conversion_waits)]);
        let refused = "Accesses that devices were refused.";
        self.counter("accesses_refused_total", refused, "", &[("", m.accesses_refused)]);
        let backlog = "Memory that was left and is not given back yet.";
        self.gauge("discard_backlog_bytes", backlog, "", &[("", m.discard_backlog_bytes)]);
        let discards = "Times that the host did not take memory back.";
        self.counter("discards_failed_total", discards, "", &[("", m.discards_failed)]);
        self.latency(
            "conversion_seconds",
            "How long conversions took that changed something; of small ones a sample.",
            &m.conversion_latency,
        );
    }

    /// A histogram, whose buckets hold those before them, too.
    fn latency(&mut self, name: &str, help: &str, latency: &Latency) {
        self.head(name, "histogram", help);
        let mut total = 0;
        for (power, count) in latency.counts.iter().enumerate() {
            total += count;
            let last = power + 1 == latency.counts.len();
            let below = if last { "+Inf".into() } else { ((1u64 << power) as f64 / 1e6).to_string() };
            let _ = writeln!(self.0, "umbra_{name}_bucket{{le=\"{below}\"}} {total}");
        }
        let _ = writeln!(self.0, "umbra_{name}_sum {}", latency.sum_ns as f64 / 1e9);
        let _ = writeln!(self.0, "umbra_{name}_count {total}");
    }

    fn devices(&mut self, devices: &Counters) {
        if devices.is_empty() {
            return;
        }
        self.head("device_total", "counter", "What devices count.");
        for (device, counters) in devices {
            let device = device.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            for (name, n) in counters {
                let _ = writeln!(self.0, "umbra_device_total{{device=\"{device}\",counter=\"{name}\"}} {n}");
            }
        }
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP umbra_{name} {help}\n# TYPE umbra_{name} {kind}");
    }

    fn gauge(&mut self, name: &str, help: &str, label: &str, samples: &[(&str, u64)]) {
        self.head(name, "gauge", help);
        self.samples(name, label, samples);
    }

    fn counter(&mut self, name: &str, help: &str, label: &str, samples: &[(&str, u64)]) {
        self.head(name, "counter", help);
        self.samples(name, label, samples);
    }

    fn samples(&mut self, name: &str, label: &str, samples: &[(&str, u64)]) {
        for (value, n) in samples {
            let labels = if label.is_empty() { String::new() } else { format!("{{{label}=\"{value}\"}}") };
            let _ = writeln!(self.0, "umbra_{name}{labels} {n}");
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Server, running};

    #[tokio::test]
    async fn each_line_is_one_that_prometheus_reads() {
        let idle = Server::new().get("/vmm.metrics").await.text();
        assert!(idle.contains("\numbra_vm_state{state=\"Running\"} 0\n") && !idle.contains("memory_bytes"), "{idle}");
        let server = running().await;
        server.put("/vm.add-disk", Some(r#"{"path":"/tmp/i","id":"d"}"#.into())).await.is(200);
        let text = server.get("/vmm.metrics").await.text();
        // The launch's own.
        let made = server.get("/vm.memory-stats").await.json()["conversions_host"].as_u64().unwrap();
        assert!(made > 0);
        let lines = [
            &format!("umbra_conversion_seconds_bucket{{le=\"+Inf\"}} {made}"),
            &format!("umbra_conversion_seconds_count {made}"),
            "umbra_vm_state{state=\"Running\"} 1",
            "umbra_memory_bytes{state=\"private\"} 67108864",
            "umbra_device_total{device=\"d\",counter=\"requests\"} 0",
        ];
        for line in lines {
            assert!(text.lines().any(|other| other == line), "{line} in {text}");
        }
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with("umbra_") && value.parse::<f64>().is_ok(), "{line}");
        }
    }
}
