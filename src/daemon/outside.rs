//! Queries `auth_url`, with one HTTP request per query.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::spawn_local;
use tokio::time::timeout;

use crate::access::outside::{Outside, Question, Verdict};
use crate::config::AuthUrl;
use crate::escape;
use crate::limits::OUTSIDE_AT_ONCE_MAX;
use crate::shard::inbox::{ShardSender, ToShard};
use crate::told::Told;

/// Makes the shards use this URL from now on, or none. The task ends when no shard needs it any more.
pub(super) fn set(to: Option<&AuthUrl>, shards: &[ShardSender]) {
    let outside = to.map(|to| {
        let (ask, asked) = mpsc::unbounded_channel();
        let outside = Arc::new(Outside::new(to.timeout, to.cache, ask));
        spawn_local(serve(to.clone(), asked, Arc::downgrade(&outside)));
        outside
    });
    for shard in shards {
        shard.tell(ToShard::Outside(outside.clone()));
    }
}

/// Sends the queries, a few at a time, until the shards use another URL.
async fn serve(to: AuthUrl, mut asked: mpsc::UnboundedReceiver<Question>, outside: std::sync::Weak<Outside>) {
    let to = Arc::new(to);
    let at_once = Arc::new(Semaphore::new(OUTSIDE_AT_ONCE_MAX));
    let (fail, mut failed) = mpsc::unbounded_channel::<Unanswered>();
    let mut told = Told::default();
    loop {
        let question = tokio::select! {
            question = asked.recv() => question,
            Some(why) = failed.recv() => {
                if told.is_due(Instant::now()) {
                    tracing::warn!("auth_url does not answer ({why}): requests are refused; check that it is up and answers within auth_timeout");
                }
                continue;
            }
        };
        let Some(question) = question else { return };
        let (to, at_once, outside, fail) = (Arc::clone(&to), Arc::clone(&at_once), outside.clone(), fail.clone());
        spawn_local(async move {
            // Waiting for a free slot counts towards the maximum time for an answer.
            let answer = timeout(to.timeout, async {
                // It is never closed.
                let _turn = at_once.acquire().await;
                ask(&to, &question).await
            });
            let verdict = answer.await.unwrap_or_else(|_| Err(Unanswered::Late(to.timeout)));
            let verdict = verdict.unwrap_or_else(|why| {
                // The receiver has ended.
                let _ = fail.send(why);
                Verdict::Unanswered
            });
            if let Some(outside) = outside.upgrade() {
                outside.answered(Instant::now(), question, verdict);
            }
        });
    }
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
enum Unanswered {
    #[error("nothing within {0:?}")]
    Late(Duration),
    #[error(transparent)]
    Connection(#[from] io::Error),
    #[error(transparent)]
    Request(#[from] hyper::http::Error),
    #[error(transparent)]
    Exchange(#[from] hyper::Error),
}

/// One request (see docs/USERS.md for its contents), on a new connection.
async fn ask(to: &AuthUrl, question: &Question) -> Result<Verdict, Unanswered> {
    let stream = TcpStream::connect((to.host.as_str(), to.port)).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = spawn_local(connection);
    let body = json!({
        "action": question.action.name(),
        "address": question.address.to_string(),
        "password": question.password,
        "query": question.query,
        "stream": question.stream,
        "user": question.user,
    });
    let request = Request::builder()
        .method(Method::POST)
        .uri(&to.path)
        .header(HOST, to.authority())
        .header(CONTENT_TYPE, "application/json")
        .header(CONNECTION, "close")
        .body(Full::new(Bytes::from(escape::json(body.to_string()))))?;
    let answer = sender.send_request(request).await;
    // The body is ignored.
    connection.abort();
    Ok(match answer?.status() {
        StatusCode::OK => Verdict::May,
        StatusCode::UNAUTHORIZED => Verdict::Unknown,
        _ => Verdict::MayNot,
    })
}
