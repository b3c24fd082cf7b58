//! The output of a shard's sources, on its way to the shard's core: a queue within the thread, without system calls.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::media::{StreamEvent, StreamId, StreamSink};

/// The queue. No borrow of it is held across anything that could borrow it again.
#[derive(Debug, Default)]
pub struct Local {
    events: RefCell<VecDeque<(StreamId, StreamEvent)>>,
    /// The waker of the shard, while it waits.
    waker: RefCell<Option<Waker>>,
}

impl Local {
    /// Wakes the task of `cx` when something arrives from now on.
    pub fn register(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        match waker.as_mut() {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *waker = Some(cx.waker().clone()),
        }
    }

    /// Wakes the shard.
    pub fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.events.borrow().is_empty()
    }

    /// The oldest event.
    pub fn pop(&self) -> Option<(StreamId, StreamEvent)> {
        self.events.borrow_mut().pop_front()
    }

    fn push(&self, stream: StreamId, event: StreamEvent) {
        let mut events = self.events.borrow_mut();
        events.push_back((stream, event));
        let first = events.len() == 1;
        drop(events);
        if first {
            self.wake();
        }
    }
}

/// Puts the output of one stream's source into the queue of its shard.
#[derive(Debug)]
pub struct HomeSink {
    stream: StreamId,
    way: Way,
}

#[derive(Debug)]
enum Way {
    Direct(Rc<Local>),
    /// To a task that passes each item on when it is due.
    HeldBack(mpsc::UnboundedSender<(Instant, StreamEvent)>, Duration),
}

/// How late a timer of the runtime may be: it has a resolution of milliseconds, and so has epoll.
const TIMER_LATE: Duration = Duration::from_millis(2);

impl HomeSink {
    /// Output reaches the queue after `delay`, which is zero except in tests of measurements. Must be called within the shard's
    /// runtime.
    pub fn new(stream: StreamId, local: Rc<Local>, delay: Duration) -> HomeSink {
        if delay.is_zero() {
            return HomeSink { stream, way: Way::Direct(local) };
        }
        let (queue, mut held) = mpsc::unbounded_channel::<(Instant, StreamEvent)>();
        tokio::task::spawn_local(async move {
            while let Some((due, event)) = held.recv().await {
                // Timers fire up to 2 ms late, which a test of measurements would see as latency.
                tokio::time::sleep_until((due - TIMER_LATE).into()).await;
                while Instant::now() < due {
                    tokio::task::yield_now().await;
                }
                local.push(stream, event);
            }
        });
        HomeSink { stream, way: Way::HeldBack(queue, delay) }
    }
}

impl StreamSink for HomeSink {
    fn accept(&mut self, event: StreamEvent) {
        match &self.way {
            Way::Direct(local) => local.push(self.stream, event),
            // The task ends with this sink.
            Way::HeldBack(queue, delay) => drop(queue.send((Instant::now() + *delay, event))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::media::SourceState;
    use crate::testing::WakeCount;

    #[test]
    fn the_shard_is_woken_once_for_what_waits_together_and_gets_it_in_order() {
        let local = Rc::new(Local::default());
        let woken = Arc::new(WakeCount::default());
        let waker = Waker::from(Arc::clone(&woken));
        local.register(&Context::from_waker(&waker));
        let (a, b) = (StreamId::first(0), StreamId::first(1));
        let mut sinks = [a, b].map(|stream| HomeSink::new(stream, Rc::clone(&local), Duration::ZERO));
        for (sink, state) in [(0, SourceState::Connecting), (1, SourceState::Live), (0, SourceState::Live)] {
            sinks[sink].accept(StreamEvent::State(state));
        }
        assert_eq!(woken.take(), 1);
        let came: Vec<_> = std::iter::from_fn(|| local.pop()).collect();
        assert!(matches!(
            came[..],
            [
                (first, StreamEvent::State(SourceState::Connecting)),
                (second, StreamEvent::State(SourceState::Live)),
                (third, StreamEvent::State(SourceState::Live))
            ] if (first, second, third) == (a, b, a)
        ));
        sinks[1].accept(StreamEvent::State(SourceState::Down));
        assert_eq!(woken.take(), 1);
    }
}
