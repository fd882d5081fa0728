//! The shipped table of OT services: their names and ports, and which of them are protected by default.
//!
//! Sources, as in each row: W = IANA registry, N = nmap's NSE port rules, Z =
//! CISA ICSNPP or Zeek, M = CISA Malcolm, R = Digital Bond Redpoint, I = ITI
//! ICS-Security-Tools, V = the vendor's own page, S = the protocol's own
//! specification, D = Wireshark's dissector.
//!
//! A port is protected over TCP and UDP if IANA assigns both to its service, if a source
//! names both, or if M names the port without a transport. Gateways carry most of these
//! protocols over either. It is protected over one transport alone if IANA reserves the
//! other, or if the other belongs to something else. From port 32768 on, ordinary programs
//! get the same ports from the kernel. There a source must name the transport itself.

use pp_common::decide::transport::{TCP, UDP};

/// When a service is protected outside zones. Inside a zone every port is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Standing {
    /// Protected unless policy lists services without it.
    Default,
    /// Protected only if policy enables it, since its ports are common in ordinary IT too.
    Clashes,
    /// Protected only if policy enables it, since the port belongs to a product.
    OptIn,
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    // D reads Modbus over UDP, and gateways offer it.
    service("modbus", "Modbus over TCP and UDP", &[(TCP, 502, 502), (UDP, 502, 502)], Default, "W N Z M I D"),
    service("modbus-security", "Modbus Security", &[(TCP, 802, 802), (UDP, 802, 802)], Default, "W M"),
    // Over UDP: RFC 1240, which carries the routable GOOSE of IEC 61850-90-5.
    service("s7comm", "ISO-TSAP: S7comm, ICCP, IEC 61850 MMS, routable GOOSE",
        &[(TCP, 102, 102), (UDP, 102, 102)], Default, "W N Z M I S D"),
    service("opc-ua", "OPC UA binary, PubSub, discovery multicast, TLS, DTLS",
        &[(TCP, 4840, 4840), (UDP, 4840, 4840), (TCP, 4843, 4843), (UDP, 4843, 4843)], Default, "W Z S"),
    service("ethernet-ip", "EtherNet/IP explicit messages, TLS, DTLS",
        &[(TCP, 44818, 44818), (UDP, 44818, 44818), (TCP, 2221, 2221), (UDP, 2221, 2221)], Default, "W N Z M I D"),
    // Over TCP the port belongs to rockwell-csp-2222.
    service("ethernet-ip-io", "EtherNet/IP implicit messages", &[(UDP, 2222, 2222)], Clashes, "W N Z M I"),
    service("rockwell-csp", "Rockwell CSP", &[(TCP, 2223, 2223), (UDP, 2223, 2223)], Default, "W R M"),
    service("rockwell-csp-2222", "Rockwell CSP, first port", &[(TCP, 2222, 2222)], Clashes, "W R M"),
    // Netdata serves 19999 over TCP, and Usermin 20000. Both stay protected, since W assigns them to DNP3.
    service("dnp3", "DNP3, secure DNP3",
        &[(TCP, 20000, 20000), (UDP, 20000, 20000), (TCP, 19999, 19999), (UDP, 19999, 19999)], Default, "W Z R I"),
    // W reserves 19998 over UDP.
    service("iec-104", "IEC 60870-5-104, secure",
        &[(TCP, 2404, 2404), (UDP, 2404, 2404), (TCP, 19998, 19998)], Default, "W N M"),
    // A site with several BACnet/IP networks gives each a port of its own, from 0xBAC0 to 0xBACF (V).
    service("bacnet", "BACnet/IP, further networks", &[(UDP, 47808, 47823), (TCP, 47808, 47808)], Default, "W N Z M I V"),
    service("profinet", "PROFINET RT, RTM, context manager",
        &[(TCP, 34962, 34964), (UDP, 34962, 34964)], Default, "W N I"),
    // The mailbox gateway of ETG.8200 listens on UDP, and may listen on TCP.
    service("ethercat", "EtherCAT over UDP, mailbox gateway", &[(UDP, 34980, 34980), (TCP, 34980, 34980)], Default, "W I S"),
    service("foundation-fieldbus", "Foundation Fieldbus HSE, LAN redundancy",
        &[(TCP, 1089, 1091), (UDP, 1089, 1091), (TCP, 3622, 3622), (UDP, 3622, 3622)], Default, "W M I"),
    service("hart-ip", "HART-IP", &[(TCP, 5094, 5094), (UDP, 5094, 5094)], Default, "W N Z"),
    // Z and GRASSMARLIN name TCP alone. W assigns the port to nobody.
    service("ge-srtp", "GE-SRTP", &[(TCP, 18245, 18245)], Default, "Z"),
    // Ethernet Global Data is UDP by definition.
    service("ge-egd", "GE Ethernet Global Data", &[(UDP, 18246, 18246)], Default, "D"),
    service("omron-fins", "Omron FINS", &[(TCP, 9600, 9600), (UDP, 9600, 9600)], Clashes, "N Z R I"),
    service("melsec-q", "MELSEC-Q", &[(TCP, 5006, 5007), (UDP, 5006, 5007)], Clashes, "M"),
    // Stations discover each other by UDP on both ports (V).
    service("niagara-fox", "Niagara Fox, Foxs, discovery",
        &[(TCP, 1911, 1911), (UDP, 1911, 1911), (TCP, 4911, 4911), (UDP, 4911, 4911)], Default, "N R V"),
    service("crimson-v3", "Red Lion Crimson v3", &[(TCP, 789, 789), (UDP, 789, 789)], Default, "M"),
    service("pcworx", "PCWorx", &[(TCP, 1962, 1962), (UDP, 1962, 1962)], Default, "N R M"),
    service("proconos", "ProConOS", &[(TCP, 20547, 20547), (UDP, 20547, 20547)], Default, "R M"),
    // V names one transport for each port of version 3 and for the gateway. W assigns 2455 to WAGO's controllers, over both.
    service("codesys", "CODESYS v2, v3 gateway, v3 runtime",
        &[(TCP, 2455, 2455), (UDP, 2455, 2455), (TCP, 1217, 1217), (TCP, 11740, 11743), (UDP, 1740, 1743)], Default, "W M R V"),
    service("codesys-v2-1200", "CODESYS v2, first port", &[(TCP, 1200, 1200)], Clashes, "M R V"),
    // S gives each transport a port of its own. Port 4713 over TCP is PulseAudio.
    service("synchrophasor", "Synchrophasor C37.118", &[(TCP, 4712, 4712), (UDP, 4713, 4713)], Default, "Z S"),
    service("roc-plus", "Emerson/Fisher ROC Plus", &[(TCP, 4000, 4000), (UDP, 4000, 4000)], Clashes, "Z I"),
    service("mqtt", "MQTT, TLS",
        &[(TCP, 1883, 1883), (UDP, 1883, 1883), (TCP, 8883, 8883), (UDP, 8883, 8883)], Clashes, "W N Z"),
    // Over TCP W assigns the port to a messenger.
    service("moxa-discovery", "Moxa discovery", &[(UDP, 4800, 4800)], Default, "scanner module"),
    // V names one transport for each port, and both ports lie in the range of ordinary programs.
    service("beckhoff-ads", "Beckhoff ADS, discovery", &[(TCP, 48898, 48898), (UDP, 48899, 48899)], Default, "V"),
    // W reserves the port over UDP.
    service("beckhoff-ads-secure", "Beckhoff secure ADS", &[(TCP, 8016, 8016)], Clashes, "W V"),
    // Over UDP W assigns the port to the discovery of a measuring instrument.
    service("osisoft-pi", "OSIsoft PI", &[(TCP, 5450, 5450)], Default, "I M"),
    service("ansi-c12-22", "ANSI C12.22", &[(TCP, 1153, 1153), (UDP, 1153, 1153)], Default, "W Z"),
    service("bsap-ip", "BSAP/IP", &[(UDP, 1234, 1235)], Clashes, "Z"),
    service("genisys", "Genisys", &[(TCP, 10001, 10001)], Clashes, "Z R"),
    // Version 2 of KNXnet/IP, and with it KNX IP Secure, has TCP beside UDP.
    service("knxnet-ip", "KNXnet/IP", &[(UDP, 3671, 3671), (TCP, 3671, 3671)], Default, "W N S D"),
    // CTA-852 carries LonTalk over UDP or TCP.
    service("lonworks", "LonWorks, LonTalk over IP (CTA-852)",
        &[(UDP, 2540, 2541), (TCP, 2540, 2541), (UDP, 1628, 1629), (TCP, 1628, 1629)], Default, "W M V D"),
    service("unitronics-pcom", "Unitronics PCOM", &[(TCP, 20256, 20257), (UDP, 20256, 20257)], Default, "M"),
    service("suitelink", "Wonderware SuiteLink", &[(TCP, 5413, 5413), (UDP, 5413, 5413)], Default, "W M"),
    // I names UDP alone, and the ports lie in the range of ordinary programs.
    service("fl-net", "FL-net", &[(UDP, 55000, 55003)], Default, "I M"),
    service("metasys-n1", "Johnson Metasys N1", &[(TCP, 11001, 11001), (UDP, 11001, 11001)], Default, "W I"),
    // The products below have web and OPC UA servers, which are TCP.
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
        assert_eq!(service_name(UDP, 503), None);
        assert_eq!(service_name(TCP, 3480), None, "a known typing error for 4840");
    }

    /// The name of the transport in the docs.
    fn transport(protocol: u8) -> &'static str {
        if protocol == TCP { "tcp" } else { "udp" }
    }

    /// The ports as the docs write them.
    fn written(row: &ServiceRow) -> String {
        let range = |(protocol, first, last): &(u8, u16, u16)| match (first, last) {
            (first, last) if first == last => format!("{first}/{}", transport(*protocol)),
            (first, last) => format!("{first}-{last}/{}", transport(*protocol)),
        };
        row.ports.iter().map(range).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn the_page_of_policy_has_every_row_as_it_is_here() {
        let page = include_str!("../../docs/policy.md");
        let table = page.lines().skip_while(|line| !line.starts_with("| service |")).skip(2).take_while(|line| line.starts_with('|'));
        let rows = TABLE.iter().map(|row| {
            let default = if row.standing == Standing::Default { "yes" } else { "no" };
            format!("| `{}` | {} | {} | {default} | {} |", row.name, row.title, written(row), row.sources)
        });
        assert_eq!(table.map(str::to_owned).collect::<Vec<_>>(), rows.collect::<Vec<_>>());
    }

    /// Ports that are protected over one transport alone. The comments of the table have the reasons.
    #[test]
    fn ports_over_one_transport_alone_are_these() {
        let all: BTreeSet<(u8, u16)> = defaults().flat_map(ServiceRow::each_port).collect();
        let other = |protocol| if protocol == TCP { UDP } else { TCP };
        let alone = all.iter().filter(|(protocol, port)| !all.contains(&(other(*protocol), *port)));
        let alone: Vec<String> = alone.map(|(protocol, port)| format!("{port}/{}", transport(*protocol))).collect();
        let networks_of_bacnet = (47809..=47823).map(|port| format!("{port}/udp"));
        let tcp = ["1217/tcp", "4712/tcp", "5450/tcp", "11740/tcp", "11741/tcp", "11742/tcp", "11743/tcp", "18245/tcp", "19998/tcp"];
        let before = ["1740/udp", "1741/udp", "1742/udp", "1743/udp", "4713/udp", "4800/udp", "18246/udp"];
        let after = ["48899/udp", "55000/udp", "55001/udp", "55002/udp", "55003/udp"];
        let expected = tcp.into_iter().chain(["48898/tcp"]).chain(before).map(str::to_owned);
        let expected = expected.chain(networks_of_bacnet).chain(after.into_iter().map(str::to_owned));
        assert_eq!(alone, expected.collect::<Vec<_>>());
    }

    /// A remote end there may be an ordinary program: a peer of WebRTC or QUIC, or a server of passive FTP. So each port needs its own
    /// source, and they stay few: fewer than one in a thousand.
    #[test]
    fn few_ports_of_ordinary_programs_are_protected() {
        let all: BTreeSet<(u8, u16)> = defaults().flat_map(ServiceRow::each_port).filter(|(_, port)| *port >= 32_768).collect();
        let of = |protocol| all.iter().filter(move |(p, _)| *p == protocol).map(|(_, port)| *port).collect::<Vec<u16>>();
        assert_eq!(of(TCP), [34962, 34963, 34964, 34980, 44818, 47808, 48898]);
        let udp = [34962, 34963, 34964, 34980, 44818].into_iter().chain(47808..=47823).chain([48899, 55000, 55001, 55002, 55003]);
        assert_eq!(of(UDP), udp.collect::<Vec<u16>>());
        assert!(of(UDP).len() < (65_536 - 32_768) / 1_000, "{:?}", of(UDP));
    }

    #[test]
    fn what_ordinary_programs_use_is_not_protected() {
        let tcp = [
            21, 22, 25, 53, 80, 110, 143, 389, 443, 445, 465, 587, 631, 636, 853, 873, 989, 990, 993, 995, 1080, 1194, 1433, 1521, 2049,
            2375, 2376, 2379, 3000, 3128, 3268, 3306, 3389, 4222, 4317, 4318, 4369, 4444, 4713, 5000, 5173, 5222, 5353, 5432, 5601, 5671,
            5672, 5900, 5984, 6379, 6443, 6667, 7687, 8000, 8080, 8081, 8125, 8200, 8443, 8500, 8883, 8888, 9000, 9090, 9092, 9100, 9200,
            9300, 9418, 10250, 11211, 11434, 15672, 25565, 26257, 27017, 50051, 51413,
        ];
        // Name service, time, QUIC, STUN and TURN, tunnels, discovery, telephony, games.
        let udp = [
            53, 67, 68, 69, 80, 123, 137, 138, 161, 162, 443, 500, 514, 546, 547, 853, 1194, 1701, 1900, 2055, 3478, 3479, 3480, 3481,
            3702, 4433, 4500, 4739, 4789, 5004, 5005, 5060, 5349, 5353, 5355, 6081, 6343, 6771, 6881, 8125, 8443, 8472, 8801, 8810, 9987,
            10000, 19302, 19305, 21116, 27015, 34197, 41641, 51820, 60000, 60001, 61000,
        ];
        let services = crate::config::Config::builtin().unwrap().services;
        for (protocol, ports) in [(TCP, tcp.as_slice()), (UDP, udp.as_slice())] {
            for port in ports {
                let found = services.on(protocol, *port).map(|row| row.name);
                assert_eq!(found, None, "{port}/{}", transport(protocol));
            }
        }
    }
}
