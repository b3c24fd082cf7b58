//! How a session's end is counted.

use crate::metrics::LeaveReason;
use crate::session::EndReason;

/// The reason for a session's end in the counts.
pub(super) fn leave_reason(reason: EndReason) -> LeaveReason {
    match reason {
        EndReason::Teardown => LeaveReason::Teardown,
        EndReason::Timeout => LeaveReason::SessionTimeout,
        EndReason::Disconnected => LeaveReason::Disconnected,
        EndReason::Closed | EndReason::TakenOver | EndReason::Silent => LeaveReason::Protocol,
        EndReason::Stalled => LeaveReason::Stalled,
        EndReason::SendFailed => LeaveReason::SendFailed,
        EndReason::SourceChanged | EndReason::Reconfigured => LeaveReason::SourceChanged,
        EndReason::StreamRemoved => LeaveReason::StreamRemoved,
        EndReason::Panicked => LeaveReason::Panicked,
        EndReason::Unauthorized => LeaveReason::Unauthorized,
        EndReason::Leaving => LeaveReason::Drained,
        EndReason::Asked => LeaveReason::Ended,
        EndReason::Stopping => LeaveReason::Stopping,
        EndReason::Replaced => LeaveReason::Replaced,
    }
}
