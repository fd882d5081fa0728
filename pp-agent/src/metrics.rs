//! Counters in Prometheus' text format 0.0.4.
//!
//! It is not made by `prometheus-client`, which only writes OpenMetrics, where counters, their types and their help have other texts.

use std::fmt::Write;

use pp_common::abi::Counter;

/// Builds the text, one metric after the other.
#[derive(Debug, Default)]
pub(crate) struct Text(String);

impl Text {
    /// A counter, which only grows.
    pub(crate) fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.metric(name, help, "counter", value);
    }

    /// A gauge, which goes up and down.
    pub(crate) fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.metric(name, help, "gauge", value);
    }

    /// A counter of several values, distinguished by one label.
    pub(crate) fn counters(&mut self, name: &str, help: &str, label: &str, values: &[(String, u64)]) {
        self.labelled(name, help, "counter", label, values);
    }

    /// A gauge of several values, distinguished by one label.
    pub(crate) fn gauges(&mut self, name: &str, help: &str, label: &str, values: &[(String, u64)]) {
        self.labelled(name, help, "gauge", label, values);
    }

    fn labelled(&mut self, name: &str, help: &str, kind: &str, label: &str, values: &[(String, u64)]) {
        self.write(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        for (text, value) in values {
            self.write(format_args!("{name}{{{label}=\"{}\"}} {value}\n", escape_label(text)));
        }
    }

    /// A gauge with the value one and facts in its labels.
    pub(crate) fn info(&mut self, name: &str, help: &str, labels: &[(&str, &str)]) {
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escape_label(value))).collect();
        self.write(format_args!("# HELP {name} {help}\n# TYPE {name} gauge\n{name}{{{}}} 1\n", labels.join(",")));
    }

    /// The kernel's counters.
    pub(crate) fn kernel(&mut self, counters: &[u64]) {
        for counter in Counter::ALL {
            let value = counters.get(*counter as usize).copied().unwrap_or(0);
            let help = counter.text().trim_end_matches('.');
            let (first, rest) = help.split_at(1);
            self.counter(&format!("pp_kernel_{}_total", counter.name()), &format!("{}{rest}", first.to_lowercase()), value);
        }
    }

    /// The text.
    #[must_use]
    pub(crate) fn finish(self) -> String {
        self.0
    }

    fn metric(&mut self, name: &str, help: &str, kind: &str, value: u64) {
        self.write(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n"));
    }

    fn write(&mut self, text: std::fmt::Arguments<'_>) {
        if self.0.write_fmt(text).is_err() {
            tracing::error!("metrics: text could not be written");
        }
    }
}

fn escape_label(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_what_prometheus_reads() {
        let mut text = Text::default();
        text.kernel(&[3, 4]);
        text.info("pp_gate_info", "the gate", &[("host", "a\"b")]);
        let text = text.finish();
        assert!(text.contains("# TYPE pp_kernel_judged_total counter\npp_kernel_judged_total 4\n"), "{text}");
        assert!(text.contains("# HELP pp_kernel_history_full_total attempts refused for want of room for"), "{text}");
        assert!(text.contains("pp_kernel_blocked_total 0\n") && text.contains("pp_gate_info{host=\"a\\\"b\"} 1\n"));
    }
}
