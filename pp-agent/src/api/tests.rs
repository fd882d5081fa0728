use super::*;
use crate::kernel::Gap;
use pp_common::decide::{Reason, Verdict};
use serde_json::json;

fn text(answer: &impl Serialize) -> String {
    serde_json::to_value(answer).unwrap().to_string()
}

#[test]
fn members_are_in_alphabetical_order_at_every_depth() {
    let owner = crate::events::Owner { uid: 1000, name: Some("ana".into()) };
    let session = SessionView { session: "0abc".into(), owner, ..SessionView::default() };
    let wanted = r#"{"sessions":[{"agent":null,"owner":{"name":"ana","uid":1000},"processes":[],"session":"0abc","started":""}]}"#;
    assert_eq!(text(&Sessions { sessions: vec![session] }), wanted);
}

#[test]
fn void_receipt_says_why_and_has_no_terms() {
    let void = ReceiptView { void_because: Some("no key".into()), ..ReceiptView::default() };
    let wanted = r#"{"from":"","id":"","registered":"","status":"void","uids":[],"until":"","void_because":"no key"}"#;
    assert_eq!(text(&void), wanted);
    let open = ReceiptView {
        status: ReceiptStatus::Active,
        terms: Some(TermsView::default()),
        used: Some(UsedView { used_connections: 1, used_attempts: 0 }),
        ..ReceiptView::default()
    };
    let wanted = r#"{"agent":"","decider":"","from":"","id":"","key":"","max_attempts":0,"max_connections":null,"max_turns":null,"registered":"","session":null,"status":"active","summary":null,"targets":[],"uids":[],"until":"","used_attempts":0,"used_connections":1,"users":null}"#;
    assert_eq!(text(&open), wanted);
}

#[test]
fn registered_artifact_is_read_back_as_what_it_was() {
    let revoked = Revoked { id: "r1".into(), status: ReceiptStatus::Revoked, was_registered: true };
    let revocation = text(&RegisterAnswer::Revocation(revoked));
    assert_eq!(revocation, r#"{"id":"r1","status":"revoked","was_registered":true}"#);
    assert!(matches!(serde_json::from_str(&revocation).unwrap(), RegisterAnswer::Revocation(_)));
    let receipt = ReceiptView { id: "r1".into(), again: true, terms: Some(TermsView::default()), ..ReceiptView::default() };
    match serde_json::from_str(&text(&RegisterAnswer::from(receipt))).unwrap() {
        RegisterAnswer::Receipt(read) => assert!(read.again && read.terms.is_some() && read.used.is_none()),
        RegisterAnswer::Revocation(revoked) => panic!("{revoked:?}"),
    }
}

#[test]
fn refusal_told_to_an_agent_leaves_out_the_plant() {
    let told = RefusalView { requestable: Some(Requestable::default()), ..RefusalView::default() };
    let wanted = r#"{"command":null,"destination":null,"event":0,"object":null,"reason":null,"time":"","verdict":null,"words":""}"#;
    assert_eq!(text(&told), wanted);
    let person = RefusalView { place: Some(Place::default()), ..RefusalView::default() };
    let wanted =
        r#"{"destination":null,"event":0,"object":null,"reason":null,"service":null,"time":"","verdict":null,"words":"","zone":null}"#;
    assert_eq!(text(&person), wanted);
}

#[test]
fn neighbours_are_a_list_or_counts() {
    let list = NeighbourList { conflicts: vec!["x".into()], ..NeighbourList::default() };
    let counts = Neighbours::List(list).counts();
    assert_eq!(text(&Neighbours::Counts(counts)), r#"{"conflicts":1,"learned":0,"links":0,"unnamed_networks":0}"#);
    let read: Status = serde_json::from_value(json!({ "neighbours": { "learned": 2 } })).unwrap();
    assert_eq!(read.neighbours.counts().learned, 2);
}

#[test]
fn status_of_another_version_is_read_as_far_as_it_is_known() {
    let read: Status = serde_json::from_value(json!({ "posture": "levitating", "colour": "red", "gaps": ["unix", "hovering"] })).unwrap();
    assert_eq!((read.posture, read.healthy), (Posture::Unmeasured, false));
    assert_eq!(read.gaps, [Opening::Known(Gap::Unix), Opening::Found("hovering".into())]);
    assert_eq!(text(&read.gaps), r#"["unix","hovering"]"#);
}

#[test]
fn postures_and_codes_go_by_their_names() {
    assert_eq!(text(&[Posture::Enforcing, Posture::Degraded, Posture::Unmeasured]), r#"["enforcing","degraded",""]"#);
    assert_eq!(format!("{} {}", Posture::Open, ReceiptStatus::Exhausted), "open exhausted");
    let check = json!({ "verdict": "block", "reason": "no_receipt", "destination": { "address": "10.0.0.1", "transport": "tcp" } });
    let read: CheckAnswer = serde_json::from_value(check).unwrap();
    assert_eq!((read.verdict, read.reason), (Verdict::Block, Reason::NoReceipt));
    assert!(serde_json::from_value::<CheckAnswer>(json!({ "reason": "no_receipt" })).is_err());
}

#[test]
fn answer_that_says_no_keeps_its_form() {
    let error = Problem { status: 422, code: "expired".into(), message: "m".into(), pp_code: Some("PP_EXPIRED".into()) };
    let body = serde_json::to_string(&ErrorAnswer { error }).unwrap();
    assert_eq!(body, r#"{"error":{"code":"expired","message":"m","pp_code":"PP_EXPIRED"}}"#);
}
