//! Reloads of the configuration: on request, or because its files have changed.

use std::time::Instant;

use tracing::info;

use super::Relay;
use super::watch::Watch;

impl Relay {
    /// Reads the configuration again, and watches its files from now on. `asked` is whether the reload was requested.
    pub(super) async fn read_again(&mut self, watch: &mut Watch, asked: bool) {
        let Some(load) = &self.load else {
            info!("nothing to reload: the relay was started without a configuration file");
            return;
        };
        let read = load();
        let files = read.as_ref().ok().map(|config| config.files.clone());
        if read.is_err() && watch.was_refused() && !asked {
            // It is retried periodically, and the error has already been logged.
            watch.was_read(Instant::now(), None);
            return;
        }
        self.notifier.reloading();
        self.reload(read).await;
        self.notifier.tell("READY=1");
        watch.was_read(Instant::now(), files.as_deref());
    }
}
