//! The ring buffer's reading end.

use aya::maps::{MapData, RingBuf};
use tokio::io::{Interest, unix::AsyncFd};

use super::KernelError;

/// Records of the kernel programs, in order.
pub struct Records {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl Records {
    pub(super) fn new(ring: RingBuf<MapData>) -> Result<Self, KernelError> {
        // SAFETY: the ring owns its descriptor for as long as it lives, and it is only dropped
        // with the `AsyncFd` around it.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
            .map_err(|error| KernelError::io("ring buffer")(error.into()))?;
        Ok(Self { ring })
    }

    /// The next record; waits for one, and says so each time.
    pub async fn next(&mut self, mut idle: impl FnMut()) -> Vec<u8> {
        loop {
            if let Some(record) = self.ring.get_mut().next() {
                return record.to_vec();
            }
            idle();
            match self.ring.readable_mut().await {
                Ok(mut ready) => ready.clear_ready(),
                Err(error) => {
                    tracing::error!("ring buffer: {error}");
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}
