//! Marked sockets: their marks, and how to find and end them in all network namespaces.

use std::{
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    sync::{MutexGuard, PoisonError},
};

use pp_common::abi::SockMark;

use super::{Gate, KernelError, maps::optional};
use crate::os::{diag, namespaces::Namespaces};

impl Gate {
    /// The mark of a socket, by our own descriptor for it.
    ///
    /// # Errors
    /// The map cannot be read.
    pub(crate) fn sock_mark(&self, socket: BorrowedFd<'_>) -> Result<Option<SockMark>, KernelError> {
        optional(self.maps.socks.lock().get(&socket.as_raw_fd(), 0)).map_err(|error| self.maps.socks.error(error))
    }

    /// Marks a socket, by our own descriptor for it.
    ///
    /// # Errors
    /// The map cannot be written.
    pub(crate) fn set_sock_mark(&self, socket: BorrowedFd<'_>, mark: SockMark) -> Result<(), KernelError> {
        let socket = socket.as_raw_fd();
        self.maps.socks.lock().insert(&socket, mark, 0).map_err(|error| self.maps.socks.error(error))
    }

    /// Copies the mark of a socket from the layout of an earlier build. `false`: it had none, or the layout is unknown.
    ///
    /// # Errors
    /// A map cannot be read or written.
    pub(crate) fn carry_sock_mark(&self, socket: BorrowedFd<'_>) -> Result<bool, KernelError> {
        let found = self.earlier_socks.as_ref().map(|earlier| earlier.get(socket)).transpose()?.flatten();
        match found {
            Some(mark) if mark.session != 0 => self.set_sock_mark(socket, mark).map(|()| true),
            Some(_) | None => Ok(false),
        }
    }

    /// Why flows that no process has open cannot be found and ended on this kernel; `None`: they can.
    #[must_use]
    pub(crate) fn sock_diag_problem(&self) -> Option<&str> {
        self.sock_diag_problem.as_deref()
    }

    /// Looks for the network namespaces of marked processes. `true`: a flow that no process has open may be in one that they left.
    ///
    /// # Errors
    /// The map cannot be read.
    pub(crate) fn look_for_namespaces(&self) -> Result<bool, KernelError> {
        let marks = self.marks()?;
        let mut namespaces = self.namespaces();
        namespaces.look(marks.into_iter().map(|(pid, _)| pid));
        Ok(namespaces.has_deserted())
    }

    /// Remembers the network namespace of a marked process that may end at any moment.
    pub(crate) fn learn_namespace(&self, pid: u32) {
        // Skipped while sockets are listed. The task that ends refused flows looks again anyway.
        if let Ok(mut namespaces) = self.namespaces.try_lock() {
            namespaces.learn(pid);
        }
    }

    /// Whether marked processes are in more network namespaces than are watched.
    #[must_use]
    pub(crate) fn has_too_many_namespaces(&self) -> bool {
        self.namespaces().full()
    }

    /// Every TCP socket that has a mark, in every network namespace that is known. Blocking.
    #[must_use]
    pub(crate) fn marked_sockets(&self) -> Vec<(diag::Id, diag::Marked)> {
        if self.sock_diag_problem.is_some() {
            return Vec::new();
        }
        self.namespaces().marked(self.socks.as_fd())
    }

    /// Ends such a socket, and discards its queue. `false`: it was ended before, but the kernel still keeps it.
    ///
    /// # Errors
    /// The kernel cannot do it, or the socket has ended by itself.
    pub(crate) fn destroy(&self, namespace: &diag::Id, socket: &diag::Marked) -> std::io::Result<bool> {
        self.namespaces().destroy(namespace, socket)
    }

    fn namespaces(&self) -> MutexGuard<'_, Namespaces> {
        self.namespaces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
