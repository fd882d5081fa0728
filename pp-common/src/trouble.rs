//! What a program has the daemon warn of: it is rare, and concerns more than one attempt.

use crate::codes::codes;

codes! {
    /// What a program could not do. The text is the line in the log. "No room" also says that the kernel had no memory, or that the map was busy.
    enum Trouble: u32 {
        /// no room in TASKS: a process is killed, max_tasks may be too low
        TasksFull = 1, "tasks_full";
        /// no room in DOOMED: a child is known by its ancestors only
        DoomedFull = 2, "doomed_full";
        /// no room in HISTORIES: a session's attempts cannot be counted
        HistoriesFull = 3, "histories_full";
        /// no room in LOGINS: connections to a login target are not counted
        LoginsFull = 4, "logins_full";
        /// no room in CLAIMED: a foreign source address is not noted
        ClaimedFull = 5, "claimed_full";
        /// no room in REPEATS: repeats become records of their own
        RepeatsFull = 6, "repeats_full";
        /// no room in EVENTS: attempts are counted, records dropped
        EventsFull = 7, "events_full";
        /// no room in LIFECYCLE: records of processes are dropped
        LifecycleFull = 8, "lifecycle_full";
        /// no room in SOCKS: a socket cannot be marked
        SocketUnmarked = 9, "socket_unmarked";
        /// BUDGETS lacks a receipt: it allows nothing
        BudgetMissing = 10, "budget_missing";
        /// kernel memory about a marked process cannot be read
        Unreadable = 11, "unreadable";
    }
}

/// How often the line of one kind is written, in nanoseconds.
pub const TROUBLE_EVERY_NS: u64 = 1_000_000_000;
/// Room for codes, a power of two above the greatest.
pub const TROUBLES: u32 = 16;
