//! Notifies the service manager, if there is one.

use sd_notify::NotifyState;

/// Reports that the daemon is ready. `systemctl status` shows `status`.
pub(crate) fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Updates the status line.
pub(crate) fn status(status: &str) {
    send(&[NotifyState::Status(status)]);
}

/// Reports that the daemon is alive. Must be called more often than `WatchdogSec=` of its unit.
pub(crate) fn alive() {
    if sd_notify::watchdog_enabled().is_some() {
        send(&[NotifyState::Watchdog]);
    }
}

/// Reports that the daemon stops.
pub(crate) fn stopping() {
    send(&[NotifyState::Stopping]);
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("service manager: {error}");
    }
}
