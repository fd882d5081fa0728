use super::*;

fn technique(state: &str, gap: Option<&str>) -> Technique {
    Technique {
        technique: "TCP connect".into(),
        address_form: "v4".into(),
        state: state.into(),
        gap: gap.map(str::to_owned),
        test: "coverage::tcp_connect_v4_is_refused".into(),
    }
}

fn found(rows: Vec<Technique>) -> Found {
    Found {
        row: "native".into(),
        kernel: "6.18".into(),
        backend: "cgroup".into(),
        commit: String::new(),
        date: String::new(),
        sources: String::new(),
        suite: String::new(),
        score: 1.0,
        rows,
    }
}

fn report(state: &str, test: &str) -> Report {
    let name = technique(state, None).test;
    Report {
        kernel_release: "6.18".into(),
        backend: "cgroup".into(),
        tests: vec![Test { name, state: test.into() }],
        coverage: vec![technique(state, None)],
    }
}

#[test]
fn open_rows_unnamed_gaps_and_tests_that_did_not_run_are_refused() {
    assert_eq!(wrong(&found(vec![technique("closed", None)])), Vec::<String>::new());
    for row in [technique("open", None), technique("not_run", None), technique("gap", None), technique("gap", Some("other"))] {
        assert_ne!(wrong(&found(vec![technique("closed", None), row.clone()])), Vec::<String>::new(), "{row:?}");
    }
    assert_ne!(wrong(&found(vec![technique("undeliverable", None)])), Vec::<String>::new());
}

#[test]
fn a_closed_row_needs_its_test_to_have_passed() {
    let committed = found(vec![technique("closed", None)]);
    assert_eq!(differences(&committed, &report("closed", "passed")), Vec::<String>::new());
    assert_ne!(differences(&committed, &report("open", "failed")), Vec::<String>::new());
    assert_ne!(differences(&committed, &report("undeliverable", "skipped")), Vec::<String>::new());
    let gone = Report { coverage: Vec::new(), ..report("closed", "passed") };
    assert_ne!(differences(&committed, &gone), Vec::<String>::new());
}

fn matrix() -> Matrix {
    Matrix::load(&Paths::find().expect("the workspace")).expect("the matrix")
}

/// The result of a row of the matrix with this hash of sources.
fn of(row: &str, sources: &str) -> (String, Found) {
    let backend = matrix().row(row).expect("a row").backend.clone();
    (row.into(), Found { row: row.into(), backend, sources: sources.into(), ..found(vec![technique("closed", None)]) })
}

fn checked(committed: Vec<(String, Found)>, demand: Demand, fresh: Option<Report>) -> Checked {
    let native_only = |row: &Row| Ok(if row.kernel.is_none() { fresh.as_ref().map(copy) } else { None });
    compare(&committed.into_iter().collect(), &matrix(), "now", demand, native_only).expect("no error")
}

fn copy(of: &Report) -> Report {
    let tests = of.tests.iter().map(|test| Test { name: test.name.clone(), state: test.state.clone() }).collect();
    Report { kernel_release: of.kernel_release.clone(), backend: of.backend.clone(), tests, coverage: of.coverage.clone() }
}

#[test]
fn an_old_row_of_an_emulated_kernel_is_named_as_stale_or_refused_when_all_must_be_current() {
    let committed = vec![of("native", "now"), of("6.12", "before"), of("6.1", "now")];
    let ci = checked(committed.clone(), Demand::Native, Some(report("closed", "passed")));
    assert_eq!(ci.complaints, Vec::<String>::new());
    assert_eq!(ci.stale, ["6.12: stale: measured on other kernel programs; run cargo xtask coverage --rows 6.12"]);
    assert_eq!(ci.current, 2);
    let all = checked(committed, Demand::All, None);
    assert_eq!((all.complaints.len(), all.stale.len(), all.current), (1, 0, 2), "{:?}", all.complaints);
    assert!(all.complaints[0].starts_with("6.12: stale"), "{:?}", all.complaints);
}

#[test]
fn the_native_row_must_be_of_these_sources_and_not_contradict_a_fresh_run() {
    for demand in [Demand::Native, Demand::All] {
        assert_eq!(checked(vec![of("native", "before")], demand, None).complaints.len(), 1);
        assert_eq!(checked(Vec::new(), demand, None).complaints.len(), 1);
        assert_eq!(checked(vec![of("native", "now")], demand, Some(report("open", "failed"))).complaints.len(), 1);
        assert_eq!(checked(vec![of("native", "now")], demand, Some(report("closed", "passed"))).complaints.len(), 0);
    }
}

#[test]
fn a_row_with_another_table_than_the_native_one_is_stale() {
    let (name, mut emulated) = of("6.12", "now");
    emulated.rows[0].test = "coverage::one_that_is_gone".into();
    let committed = vec![of("native", "now"), (name, emulated)];
    assert_eq!(checked(committed.clone(), Demand::Native, None).stale.len(), 1);
    assert_eq!(checked(committed, Demand::All, None).complaints.len(), 1);
}

#[test]
fn a_stale_row_may_still_not_be_open() {
    let (name, mut emulated) = of("6.12", "before");
    emulated.rows.push(technique("open", None));
    assert_eq!(checked(vec![of("native", "now"), (name, emulated)], Demand::Native, None).complaints.len(), 1);
}

#[test]
fn a_row_that_the_committed_result_does_not_have_is_reported() {
    assert_ne!(differences(&found(Vec::new()), &report("closed", "passed")), Vec::<String>::new());
}
