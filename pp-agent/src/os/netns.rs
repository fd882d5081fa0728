//! Network namespaces: of which process, in which user namespace, and running code in one.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;

/// `_IO(0xb7, 0x1)` (`linux/nsfs.h`): a descriptor of the user namespace that owns one.
const NS_GET_USERNS: libc::c_ulong = 0xb701;

/// One network namespace, kept open.
#[derive(Debug)]
pub(crate) struct Namespace {
    file: File,
    number: u32,
}

impl Namespace {
    /// The namespace of a process.
    ///
    /// # Errors
    /// The process has ended, or may not be accessed.
    pub(crate) fn of_process(pid: u32) -> io::Result<Self> {
        Self::of_file(File::open(format!("/proc/{pid}/ns/net"))?)
    }

    /// The daemon's own namespace.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub(crate) fn own() -> io::Result<Self> {
        Self::of_file(File::open("/proc/self/ns/net")?)
    }

    fn of_file(file: File) -> io::Result<Self> {
        let number = u32::try_from(file.metadata()?.ino()).map_err(io::Error::other)?;
        Ok(Self { file, number })
    }

    /// Its inode number.
    #[must_use]
    pub(crate) const fn number(&self) -> u32 {
        self.number
    }

    /// Whether the daemon's own user namespace owns it. Then its tables are the host's, and not those of a user who made a namespace.
    ///
    /// # Errors
    /// The kernel does not say.
    pub(crate) fn is_of_this_host(&self) -> io::Result<bool> {
        // SAFETY: takes no argument and returns a descriptor.
        let owner = unsafe { libc::ioctl(self.file.as_raw_fd(), NS_GET_USERNS) };
        if owner < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor that the kernel just made for us.
        let owner = File::from(unsafe { OwnedFd::from_raw_fd(owner) }).metadata()?;
        let own = File::open("/proc/self/ns/user")?.metadata()?;
        Ok((owner.dev(), owner.ino()) == (own.dev(), own.ino()))
    }

    /// Runs `act` in it. Sockets that are made there stay there.
    ///
    /// # Errors
    /// It cannot be entered, or `act` failed.
    pub(crate) fn within<T: Send>(&self, act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        within(self.file.as_fd(), act)
    }

    /// The namespace of a socket.
    ///
    /// # Errors
    /// The kernel does not say.
    pub(super) fn of_socket(socket: BorrowedFd<'_>) -> io::Result<Self> {
        const SIOCGSKNS: libc::c_ulong = 0x894C;
        // SAFETY: takes no argument and returns a descriptor of the socket's namespace.
        let namespace = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS) };
        if namespace < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor that the kernel just made for us.
        Self::of_file(File::from(unsafe { OwnedFd::from_raw_fd(namespace) }))
    }
}

/// Runs `act` in a network namespace, on a new thread, since a thread cannot leave a namespace again.
///
/// # Errors
/// It cannot be entered, or `act` failed.
pub(super) fn within<T: Send>(namespace: BorrowedFd<'_>, act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let there = scope.spawn(|| {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
            act()
        });
        there.join().unwrap_or_else(|_| Err(io::Error::other("the thread ended")))
    })
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
