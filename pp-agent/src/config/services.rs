//! `[services]`: which services are protected outside zones, and where not. Both lists add to what is shipped.

use super::error::{ConfigError, Origin, Problem};
use super::raw;
use super::source::Text;
use super::tables::{add, set};
use super::value::{invalid, network, service};
use super::{Mode, Services};
use crate::services::{self, ServiceRow};
use ipnet::IpNet;

/// What the files have set.
#[derive(Default)]
pub(super) struct Written {
    pub(super) mode: Option<(Mode, Origin)>,
    enable: Vec<&'static ServiceRow>,
    /// Services that are enabled by name, and where.
    named: Vec<(&'static ServiceRow, Origin)>,
    disable: Vec<(&'static ServiceRow, Origin)>,
    exempt: Vec<IpNet>,
    /// Whether a file replaces the shipped list, for each of the two lists.
    replace_services: bool,
    replace_exempt: bool,
    /// Whether a list adds without saying so.
    adds_services: bool,
    adds_exempt: bool,
}

impl Written {
    /// Adds the table of one file.
    pub(super) fn file(&mut self, source: &Text<'_>, file: raw::Services) -> Result<(), ConfigError> {
        set(&mut self.mode, file.mode, "services.mode", source)?;
        let replace = file.replace.filter(|replace| *replace.get_ref());
        if let Some(replace) = &replace
            && file.enable.is_none()
            && file.exempt.is_none()
        {
            let instead = "write the list that is to stand alone beside it: enable or exempt";
            return Err(invalid(source.at(replace.span()), Problem::ChangesNothing { what: "services.replace".to_owned(), instead }));
        }
        // `replace` only concerns the lists of the same file. Lists of other files still add.
        self.replace_services |= replace.is_some() && file.enable.is_some();
        self.replace_exempt |= replace.is_some() && file.exempt.is_some();
        let known = file.enable.iter().flatten().any(|word| matches!(word.get_ref().as_str(), "*" | "default"));
        self.adds_services |= file.enable.is_some() && replace.is_none() && !known;
        for word in file.enable.iter().flatten() {
            match word.get_ref().as_str() {
                "*" => self.enable.extend(services::TABLE),
                "default" => self.enable.extend(services::defaults()),
                name => {
                    let row = service(source, name, word)?;
                    self.enable.push(row);
                    self.named.push((row, source.at(word.span())));
                }
            }
        }
        for word in &file.disable {
            let row = service(source, word.get_ref(), word)?;
            self.disable.push((row, source.at(word.span())));
        }
        let exempt = file.exempt.iter().flatten().map(|text| network(source, text)).collect::<Result<Vec<_>, _>>()?;
        self.adds_exempt |=
            file.exempt.is_some() && replace.is_none() && !Services::default().exempt.iter().all(|own| exempt.contains(own));
        add(&mut self.exempt, exempt);
        Ok(())
    }

    /// The lists that add, in words.
    pub(super) fn adds(&self) -> Vec<String> {
        let lists = [(self.adds_services, "[services] enable"), (self.adds_exempt, "[services] exempt")];
        lists.into_iter().filter(|(adds, _)| *adds).map(|(_, list)| list.to_owned()).collect()
    }

    /// The networks in which services are not protected.
    pub(super) fn exempt(&self) -> Vec<IpNet> {
        let mut exempt = if self.replace_exempt { Vec::new() } else { Services::default().exempt };
        add(&mut exempt, self.exempt.iter().copied());
        exempt
    }

    /// The services, on a host of this mode.
    pub(super) fn finish(self, host: Mode) -> Result<Services, ConfigError> {
        for (row, at) in &self.disable {
            if let Some((_, first)) = self.named.iter().find(|(named, _)| named == row) {
                let problem = Problem::BothWays { what: "service", name: row.name.to_owned(), first: first.clone() };
                return Err(invalid(at.clone(), problem));
            }
        }
        let exempt = self.exempt();
        let mut enabled = if self.replace_services { Vec::new() } else { Services::default().enabled };
        add(&mut enabled, self.enable);
        enabled.retain(|row| self.disable.iter().all(|(away, _)| away != row));
        Ok(Services { enabled, exempt, mode: self.mode.map_or(host, |(mode, _)| mode) })
    }
}
