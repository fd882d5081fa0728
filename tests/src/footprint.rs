//! What a daemon takes up: its own memory, and that of the kernel's tables it holds.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result, ensure};

/// A process's memory, and that of the maps it has open, in KiB.
#[derive(Clone, Copy, Debug)]
pub struct Footprint {
    /// Resident memory.
    pub resident_kib: u64,
    /// Memory of its maps, as the kernel counts it.
    pub maps_kib: u64,
}

impl Footprint {
    /// Of this process now.
    ///
    /// # Errors
    /// It is gone, or has no map open.
    pub fn of(pid: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let resident_kib = resident.trim().trim_end_matches(" kB").parse()?;
        let mut maps = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
            // A descriptor may be closed between the two looks.
            let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
            let member =
                |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).and_then(|rest| rest.trim().parse::<u64>().ok());
            if let (Some(id), Some(bytes)) = (member("map_id:"), member("memlock:")) {
                let _same = maps.insert(id, bytes);
            }
        }
        ensure!(!maps.is_empty(), "process {pid} has no map open");
        Ok(Self { resident_kib, maps_kib: maps.values().sum::<u64>() / 1024 })
    }

    /// Checks that a later look found at most so much more.
    ///
    /// # Errors
    /// It grew beyond that.
    pub fn bounds(&self, later: &Self, resident_kib: u64, maps_kib: u64) -> Result<()> {
        ensure!(
            later.resident_kib <= self.resident_kib + resident_kib,
            "memory grew from {} to {} KiB",
            self.resident_kib,
            later.resident_kib
        );
        ensure!(later.maps_kib <= self.maps_kib + maps_kib, "maps grew from {} to {} KiB", self.maps_kib, later.maps_kib);
        Ok(())
    }
}
