//! The shipped table of OT services: their names and ports, and which of them are protected by default.
//!
//! Sources, as in each row: W = IANA registry, N = nmap's NSE port rules, Z =
//! CISA ICSNPP or Zeek, M = CISA Malcolm, R = Digital Bond Redpoint, I = ITI
//! ICS-Security-Tools, V = the vendor's own page.

use pp_common::decide::transport::{TCP, UDP};

/// When a service is protected outside zones. Inside a zone every port is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Protected unless policy lists services without it.
    Default,
    /// Protected only if policy enables it, since its ports are common in ordinary IT too.
    Clashes,
    /// Protected only if policy enables it, since the port belongs to a product.
    OptIn,
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ServiceRow {
    /// Its name in policy, receipts' authorities and events.
    pub(crate) name: &'static str,
    /// What it is.
    pub(crate) title: &'static str,
    /// Port ranges, inclusive, with their IP protocol number.
    pub(crate) ports: &'static [(u8, u16, u16)],
    /// When it is protected.
    pub(crate) standing: Standing,
    /// Who documents the ports.
    pub(crate) sources: &'static str,
}

impl ServiceRow {
    /// Whether it has this port.
    #[must_use]
    pub(crate) fn has(&self, transport: u8, port: u16) -> bool {
        self.ports.iter().any(|&(t, first, last)| t == transport && (first..=last).contains(&port))
    }

    /// Every single port of it, as (IP protocol number, port).
    pub(crate) fn each_port(&self) -> impl Iterator<Item = (u8, u16)> + use<> {
        self.ports.iter().flat_map(|&(t, first, last)| (first..=last).map(move |port| (t, port)))
    }
}

/// The row of this name.
#[must_use]
pub(crate) fn row(name: &str) -> Option<&'static ServiceRow> {
    TABLE.iter().find(|row| row.name == name)
}

/// The name of a port in events, whether or not policy protects it. If two services share a port, it is the one that is protected by
/// default.
#[must_use]
pub(crate) fn service_name(transport: u8, port: u16) -> Option<&'static str> {
    let mut rows = TABLE.iter().filter(|row| row.has(transport, port));
    let first = rows.clone().next()?;
    Some(rows.find(|row| row.standing == Standing::Default).unwrap_or(first).name)
}

/// The rows that are protected by default.
pub(crate) fn defaults() -> impl Iterator<Item = &'static ServiceRow> {
    TABLE.iter().filter(|row| row.standing == Standing::Default)
}

const fn service(
    name: &'static str,
    title: &'static str,
    ports: &'static [(u8, u16, u16)],
    standing: Standing,
    sources: &'static str,
) -> ServiceRow {
    ServiceRow { name, title, ports, standing, sources }
}

use Standing::{Clashes, Default, OptIn};

/// Every known service. It has no vNode port, since no public source names one. The operator adds the ports of a vNode gateway.
#[rustfmt::skip]
pub(crate) static TABLE: &[ServiceRow] = &[
    service("modbus", "Modbus/TCP", &[(TCP, 502, 502)], Default, "W N Z M I"),
    service("modbus-security", "Modbus/TCP Security", &[(TCP, 802, 802)], Default, "W M"),
    service("s7comm", "ISO-TSAP: S7comm, ICCP, IEC 61850 MMS", &[(TCP, 102, 102)], Default, "W N Z M I"),
    service("opc-ua", "OPC UA binary, discovery multicast, TLS",
        &[(TCP, 4840, 4840), (UDP, 4840, 4840), (TCP, 4843, 4843)], Default, "W Z"),
    service("ethernet-ip", "EtherNet/IP explicit messages, TLS",
        &[(TCP, 44818, 44818), (UDP, 44818, 44818), (TCP, 2221, 2221)], Default, "W N Z M I"),
    service("ethernet-ip-io", "EtherNet/IP implicit messages", &[(UDP, 2222, 2222)], Clashes, "W N Z M I"),
    service("rockwell-csp", "Rockwell CSP", &[(TCP, 2223, 2223)], Default, "W R M"),
    service("rockwell-csp-2222", "Rockwell CSP, first port", &[(TCP, 2222, 2222)], Clashes, "W R M"),
    service("dnp3", "DNP3, secure DNP3",
        &[(TCP, 20000, 20000), (UDP, 20000, 20000), (TCP, 19999, 19999)], Default, "W Z R I"),
    service("iec-104", "IEC 60870-5-104, secure", &[(TCP, 2404, 2404), (TCP, 19998, 19998)], Default, "W N"),
    service("bacnet", "BACnet/IP", &[(UDP, 47808, 47808)], Default, "W N Z M I"),
    service("profinet", "PROFINET RT, RTM, context manager",
        &[(TCP, 34962, 34964), (UDP, 34962, 34964)], Default, "W N I"),
    service("ethercat", "EtherCAT over UDP", &[(UDP, 34980, 34980)], Default, "W I"),
    service("foundation-fieldbus", "Foundation Fieldbus HSE",
        &[(TCP, 1089, 1091), (UDP, 1089, 1091)], Default, "W I"),
    service("hart-ip", "HART-IP", &[(TCP, 5094, 5094), (UDP, 5094, 5094)], Default, "W N Z"),
    service("ge-srtp", "GE-SRTP", &[(TCP, 18245, 18245)], Default, "Z"),
    service("ge-egd", "GE Ethernet Global Data", &[(UDP, 18246, 18246)], Default, "Wireshark"),
    service("omron-fins", "Omron FINS", &[(TCP, 9600, 9600), (UDP, 9600, 9600)], Clashes, "N Z R I"),
    service("melsec-q", "MELSEC-Q", &[(TCP, 5006, 5007), (UDP, 5006, 5007)], Clashes, "M"),
    service("niagara-fox", "Niagara Fox, Foxs", &[(TCP, 1911, 1911), (TCP, 4911, 4911)], Default, "N R"),
    service("crimson-v3", "Red Lion Crimson v3", &[(TCP, 789, 789)], Default, "M"),
    service("pcworx", "PCWorx", &[(TCP, 1962, 1962)], Default, "N R M"),
    service("proconos", "ProConOS", &[(TCP, 20547, 20547)], Default, "R M"),
    service("codesys", "CODESYS v2, v3 gateway, v3 runtime",
        &[(TCP, 2455, 2455), (TCP, 1217, 1217), (TCP, 11740, 11743), (UDP, 1740, 1743)], Default, "M R V"),
    service("codesys-v2-1200", "CODESYS v2, first port", &[(TCP, 1200, 1200)], Clashes, "M R V"),
    service("synchrophasor", "Synchrophasor C37.118", &[(TCP, 4712, 4712), (UDP, 4713, 4713)], Default, "Z"),
    service("roc-plus", "Emerson/Fisher ROC Plus", &[(TCP, 4000, 4000), (UDP, 4000, 4000)], Clashes, "Z I"),
    service("mqtt", "MQTT, TLS", &[(TCP, 1883, 1883), (TCP, 8883, 8883)], Clashes, "W N Z"),
    service("moxa-discovery", "Moxa discovery", &[(UDP, 4800, 4800)], Default, "scanner module"),
    service("beckhoff-ads", "Beckhoff ADS, discovery", &[(TCP, 48898, 48898), (UDP, 48899, 48899)], Default, "V"),
    service("beckhoff-ads-secure", "Beckhoff secure ADS", &[(TCP, 8016, 8016)], Clashes, "V"),
    service("osisoft-pi", "OSIsoft PI", &[(TCP, 5450, 5450)], Default, "I M"),
    service("ansi-c12-22", "ANSI C12.22", &[(TCP, 1153, 1153), (UDP, 1153, 1153)], Default, "W Z"),
    service("bsap-ip", "BSAP/IP", &[(UDP, 1234, 1235)], Clashes, "Z"),
    service("genisys", "Genisys", &[(TCP, 10001, 10001)], Clashes, "Z R"),
    service("knxnet-ip", "KNXnet/IP", &[(UDP, 3671, 3671)], Default, "W N"),
    service("lonworks", "LonWorks", &[(UDP, 2540, 2541)], Default, "M"),
    service("unitronics-pcom", "Unitronics PCOM", &[(TCP, 20256, 20256)], Default, "M"),
    service("suitelink", "Wonderware SuiteLink", &[(TCP, 5413, 5413)], Default, "M"),
    service("fl-net", "FL-net", &[(UDP, 55000, 55003)], Default, "I M"),
    service("metasys-n1", "Johnson Metasys N1", &[(TCP, 11001, 11001), (UDP, 11001, 11001)], Default, "W I"),
    service("n3uron-web", "N3uron web interface", &[(TCP, 8003, 8003), (TCP, 8443, 8443)], OptIn, "V"),
    service("n3uron-opc-ua", "N3uron OPC UA server", &[(TCP, 3005, 3005)], OptIn, "V"),
    service("ignition-web", "Ignition web interface", &[(TCP, 8088, 8088), (TCP, 8043, 8043)], OptIn, "V"),
    service("ignition-gateway-network", "Ignition gateway network", &[(TCP, 8060, 8060)], OptIn, "V"),
    service("ignition-opc-ua", "Ignition OPC UA server", &[(TCP, 62541, 62541)], OptIn, "V"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_port_that_clashes_with_it_services_is_zone_only_by_default() {
        let clashing: [u16; 14] = [2222, 4000, 1883, 8883, 10001, 1200, 1234, 1235, 5006, 5007, 9600, 8016, 8443, 8088];
        for row in defaults() {
            for (_, port) in row.each_port() {
                assert!(!clashing.contains(&port), "{} has {port}", row.name);
            }
        }
    }

    #[test]
    fn names_are_unique_and_no_two_default_services_share_a_port() {
        let mut names = BTreeSet::new();
        let mut ports = BTreeSet::new();
        for row in TABLE {
            assert!(names.insert(row.name), "{} twice", row.name);
            assert!(!row.sources.is_empty() && !row.ports.is_empty());
        }
        for row in defaults() {
            for port in row.each_port() {
                assert!(ports.insert(port), "{} shares {port:?}", row.name);
            }
        }
    }

    #[test]
    fn a_port_has_a_name_even_where_it_is_not_enforced() {
        assert_eq!(service_name(TCP, 502), Some("modbus"));
        assert_eq!(service_name(TCP, 2222), Some("rockwell-csp-2222"));
        assert_eq!(service_name(UDP, 2222), Some("ethernet-ip-io"));
        assert_eq!(service_name(UDP, 502), None);
        assert_eq!(service_name(TCP, 3480), None, "a known typing error for 4840");
    }
}
