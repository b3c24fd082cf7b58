//! A report for the tests of its renderings.

use std::time::{Duration, SystemTime};

use super::report::{Flow, HISTOGRAM_OCTAVES, Percentiles, Report, Scope, StreamReport, Totals};
use super::{DropReason, SourceDrop};
use crate::egress::EgressStats;
use crate::media::SourceState;

/// Two streams: one that plays, one that is down.
pub(super) fn report() -> Report {
    let us = |n| Some(Duration::from_micros(n));
    let latency =
        Percentiles { count: 360, p50: us(130), p90: us(400), p99: us(950), p999: us(2_400), max: us(31_000) };
    let flow = Flow {
        in_bps: 4_012_000.4,
        out_bps: 48_000_000.0,
        clients_tcp: 10,
        clients_udp: 2,
        clients_multicast: 0,
        clients_websocket: 0,
        joined: 17,
        latency,
        lag: Duration::from_millis(45),
        skips: 1,
        skips_total: 3,
        lost_total: 7,
        reconnects_total: 1,
        dropped_total: 30,
        bytes_total: 123_456_789,
    };
    let mut drops = [0; DropReason::COUNT];
    drops[DropReason::Lagging.index()] = 30;
    let mut source_drops = [0; SourceDrop::COUNT];
    source_drops[SourceDrop::Late.index()] = 4;
    let mut histogram = [0; HISTOGRAM_OCTAVES];
    histogram[6..=14].copy_from_slice(&[4, 220, 100, 30, 2, 1, 1, 1, 1]);
    Report {
        scope: Scope::Interval,
        at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        uptime: Duration::from_millis(83_500),
        span: Duration::from_secs(1),
        streams: vec![
            StreamReport {
                name: "front".into(),
                state: SourceState::Live,
                since: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_699_999_920)),
                fault: None,
                next_try_in: None,
                failures: 2,
                fps: 30.0,
                unread: Some(1_460),
                flow: flow.clone(),
                drops,
                source_drops,
                encodings: [None, None],
            },
            StreamReport {
                name: "yard".into(),
                state: SourceState::Down,
                since: None,
                fault: Some("connection refused by 192.0.2.10:554".into()),
                next_try_in: Some(Duration::from_millis(2_900)),
                failures: 31,
                fps: 0.0,
                unread: None,
                flow: Flow::default(),
                drops: [0; DropReason::COUNT],
                source_drops: [0; SourceDrop::COUNT],
                encodings: [None, None],
            },
        ],
        total: Totals {
            flow,
            connections: 14,
            sessions: 13,
            in_flight: 2,
            egress: EgressStats { operations: 5_000, submits: 400, ..EgressStats::default() },
            ..Totals::default()
        },
        histogram,
    }
}
