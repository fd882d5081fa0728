//! The fmod_ret programs: programs of the object that run at the entry of a `security_*` function and can make it return an error.
//!
//! aya cannot load them, so this module does. It parses the object again, binds it to the maps that aya opened, and passes each program to
//! `bpf(2)`. The program of an LSM hook and the fmod_ret program of the hook's caller see the same arguments, followed by the result so
//! far. The kernel's type information proves that for the running kernel.
//!
//! Since 5.12 the kernel skips a fmod_ret program while the same program is interrupted on the same CPU, which needs preemption inside the
//! kernel (`docs/kernels.md`). LSM and cgroup programs are never skipped.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
};

use aya::maps::{Map, MapData};
use aya_obj::Object;
use btf_rs::{Btf, BtfType as _, Type};

use super::{Backend, programs::Program, sys};

const BPF_PROG_TYPE_TRACING: u32 = 26;
const BPF_MODIFY_RETURN: u32 = 26;

/// The programs of the object, bound to maps, that are not loaded as any type yet.
pub(super) struct FmodObject {
    object: Object,
    /// The descriptors of the maps. The programs refer to their numbers.
    _maps: Vec<(String, OwnedFd)>,
}

/// Copies of the descriptors of an object's maps, by name.
pub(super) fn descriptors(ebpf: &aya::Ebpf) -> Result<Vec<(String, OwnedFd)>, String> {
    ebpf.maps()
        .map(|(name, map)| {
            let data = map_data(map).ok_or_else(|| format!("map {name} is of a kind that is not expected"))?;
            let fd = data.fd().as_fd().try_clone_to_owned().map_err(|error| format!("map {name}: {error}"))?;
            Ok((name.to_owned(), fd))
        })
        .collect()
}

fn map_data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LpmTrie(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::PerCpuHashMap(data)
        | Map::PerCpuLruHashMap(data)
        | Map::RingBuf(data)
        | Map::SkStorage(data) => Some(data),
        _ => None,
    }
}

impl FmodObject {
    /// Parses the object and binds its programs to the maps.
    pub(super) fn new(object: &[u8], maps: Vec<(String, OwnedFd)>) -> Result<Self, String> {
        let words = |error: &dyn std::error::Error| crate::causes::chain(error);
        let mut object = Object::parse(object).map_err(|error| words(&error))?;
        let defined = std::mem::take(&mut object.maps);
        let bound = defined.iter().map(|(name, map)| {
            let found = maps.iter().find(|(known, _)| known == name).ok_or_else(|| format!("map {name} was not opened"))?;
            Ok((name.as_str(), found.1.as_raw_fd(), map))
        });
        let bound: Vec<_> = bound.collect::<Result<_, String>>()?;
        let text = object.functions.keys().map(|(section, _)| *section).collect();
        object.relocate_maps(bound.into_iter(), &text).map_err(|error| words(&error))?;
        object.relocate_calls(&text).map_err(|error| words(&error))?;
        Ok(Self { object, _maps: maps })
    }

    /// Loads a program for the function behind an LSM hook, attaches and pins it.
    pub(super) fn put(&self, program: &Program, hook: &str, kernel: &Btf, pin: &Path) -> Result<OwnedFd, String> {
        let function = function_of(kernel, hook, !program.serves(Backend::Lsm))?;
        let name = program.name;
        let code = self.object.programs.get(name).ok_or("is missing from the object")?;
        let body = self.object.functions.get(&code.function_key()).ok_or("has no code in the object")?;
        let loaded = sys::load_program(&sys::ProgramLoad {
            name: &name.replacen("pp_lsm_", "pp_fmod_", 1),
            kind: BPF_PROG_TYPE_TRACING,
            attach_type: BPF_MODIFY_RETURN,
            function,
            instructions: &body.instructions,
            license: &code.license,
        })
        .map_err(|error| error.to_string())?;
        let seen = sys::verified_instructions(loaded.as_fd()).unwrap_or_default();
        tracing::debug!("{name} as fmod_ret: {seen} instructions verified");
        attach(loaded.as_fd(), pin).map_err(|error| format!("cannot be attached: {error}"))
    }
}

fn attach(program: BorrowedFd<'_>, pin: &Path) -> std::io::Result<OwnedFd> {
    let link = sys::attach_to_function(program)?;
    sys::pin(link.as_fd(), pin)?;
    Ok(link)
}

/// The function of the kernel that calls an LSM hook.
fn name_of(hook: &str) -> String {
    match hook {
        "bprm_check_security" => "security_bprm_check".to_owned(),
        other => format!("security_{other}"),
    }
}

/// Whether this kernel calls this LSM hook anywhere.
pub(super) fn has_hook(kernel: &Btf, hook: &str) -> bool {
    prototype(kernel, &name_of(hook)).is_some()
}

/// The number of the function, if a program for the hook can run at its entry. It must return an error code and take exactly the arguments
/// of the hook. A program that was written for the function itself (`own`) may have further arguments after these.
fn function_of(kernel: &Btf, hook: &str, own: bool) -> Result<u32, String> {
    let name = name_of(hook);
    let (number, function) = prototype(kernel, &name).ok_or_else(|| format!("this kernel has no function {name}"))?;
    // The prototype that programs of the hook see. It exists in kernels with BPF LSM compiled in, active or not.
    let (_, expected) = prototype(kernel, &format!("bpf_lsm_{hook}"))
        .ok_or_else(|| format!("this kernel is built without CONFIG_BPF_LSM: what {name} takes cannot be compared with the hook"))?;
    if function == expected || own && function.starts_with(&expected) {
        Ok(number)
    } else {
        Err(format!("{name} takes other arguments than the hook {hook}"))
    }
}

/// A function's number and the types it takes and returns.
fn prototype(kernel: &Btf, name: &str) -> Option<(u32, Vec<u32>)> {
    kernel.resolve_ids_by_name(name).ok()?.into_iter().find_map(|number| {
        let Type::Func(function) = kernel.resolve_type_by_id(number).ok()? else { return None };
        let Type::FuncProto(proto) = kernel.resolve_chained_type(&function).ok()? else { return None };
        let taken = proto.parameters.iter().map(|parameter| parameter.get_type_id());
        Some((number, std::iter::once(Some(proto.return_type_id())).chain(taken).collect::<Option<_>>()?))
    })
}
