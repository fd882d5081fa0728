use super::*;

const GREEDY: Standing = Standing::Agent(Some(1));

fn seats() -> (Arc<Seats>, ControlCounters) {
    (Arc::new(Seats::default()), ControlCounters::default())
}

fn is_closed(seat: &Seat) -> bool {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
        let closed = tokio::time::timeout(Duration::from_millis(1), seat.closed()).await.is_ok();
        if closed {
            // It also stays closed for later callers.
            seat.taken.closed.notify_one();
        }
        closed
    })
}

fn open(taken: &[Seat]) -> usize {
    taken.iter().filter(|seat| !is_closed(seat)).count()
}

#[test]
fn greedy_session_closes_its_own_oldest_and_nobody_elses() {
    let (seats, counters) = seats();
    let other = seats.take(Standing::Agent(Some(2)), 0, &counters).unwrap();
    let own: Vec<Seat> = (0..300).map(|_| seats.take(GREEDY, 0, &counters).unwrap()).collect();
    assert_eq!(open(&own), Class::Agents.bounds().share);
    assert!(is_closed(&own[0]) && !is_closed(&own[299]) && !is_closed(&other));
}

#[test]
fn full_standing_gives_a_newcomer_a_seat_of_whoever_has_most() {
    let (seats, counters) = seats();
    let bounds = Class::Users.bounds();
    let take = |uid: u32| seats.take(Standing::User(uid), uid, &counters);
    let many: Vec<Seat> = (0..bounds.share).map(|_| take(1000).unwrap()).collect();
    let others: Vec<Seat> = (0..bounds.seats - bounds.share).map(|index| take(2000 + u32::try_from(index).unwrap()).unwrap()).collect();
    assert_eq!((open(&many), open(&others)), (bounds.share, others.len()));
    let newcomer = take(3000).unwrap();
    assert!(is_closed(&many[0]) && !is_closed(&newcomer));
    assert_eq!((open(&many), open(&others)), (bounds.share - 1, others.len()));
}

#[test]
fn each_standing_has_seats_of_its_own() {
    let (seats, counters) = seats();
    let _agents: Vec<_> = (0..200).map(|session| seats.take(Standing::Agent(Some(session)), 0, &counters)).collect();
    let _dead: Vec<_> = (0..200).map(|_| seats.take(Standing::Agent(None), 0, &counters)).collect();
    let _users: Vec<_> = (0..300).map(|uid| seats.take(Standing::User(1000 + uid), 1000 + uid, &counters)).collect();
    let operator = seats.take(Standing::Operator, 0, &counters).unwrap();
    assert!(!is_closed(&operator));
    let taken = |class: Class| seats.row(class).taken.lock().unwrap().len();
    assert_eq!((taken(Class::Agents), taken(Class::Users), taken(Class::Operators)), (64, 128, 1));
}

#[test]
fn operator_is_served_beside_any_number_of_operators() {
    let (seats, counters) = seats();
    let crowd: Vec<Seat> = (0..500).map(|_| seats.take(Standing::Operator, 0, &counters).unwrap()).collect();
    assert_eq!(open(&crowd), Class::Operators.bounds().seats);
    assert!(!is_closed(&seats.take(Standing::Operator, 0, &counters).unwrap()));
}

#[tokio::test]
async fn connection_in_a_call_is_not_closed_and_streams_are_closed_last() {
    let (seats, counters) = seats();
    let bounds = Class::Agents.bounds();
    let own: Vec<Seat> = (0..bounds.share).map(|_| seats.take(GREEDY, 0, &counters).unwrap()).collect();
    let _turn = own[0].turn().await.unwrap();
    own[1].streams();
    let _newest = seats.take(GREEDY, 0, &counters).unwrap();
    let numbers: Vec<u64> = seats.row(Class::Agents).taken.lock().unwrap().iter().map(|seat| seat.number).collect();
    assert!(numbers.contains(&0) && numbers.contains(&1) && !numbers.contains(&2));
}

#[tokio::test]
async fn calls_of_one_standing_wait_for_each_other_and_not_for_those_of_another() {
    let (seats, counters) = seats();
    let bounds = Class::Agents.bounds();
    let agents: Vec<Seat> =
        (0..=bounds.calls as u64).map(|session| seats.take(Standing::Agent(Some(session)), 0, &counters).unwrap()).collect();
    let mut turns = Vec::new();
    for agent in &agents[..bounds.calls] {
        turns.push(agent.turn().await.unwrap());
    }
    let waits = tokio::time::timeout(Duration::from_millis(50), agents[bounds.calls].turn()).await;
    assert!(waits.is_err(), "there is no turn left");
    let operator = seats.take(Standing::Operator, 0, &counters).unwrap();
    assert!(operator.turn().await.is_ok());
    turns.pop();
    assert!(agents[bounds.calls].turn().await.is_ok());
}

#[test]
fn newcomer_is_turned_away_only_while_every_seat_is_in_a_call() {
    let (seats, counters) = seats();
    let bounds = Class::Agents.bounds();
    let taken: Vec<Seat> =
        (0..bounds.seats as u64).map(|session| seats.take(Standing::Agent(Some(session)), 0, &counters).unwrap()).collect();
    for seat in &taken {
        seat.taken.stage.store(IN_CALL, Ordering::Release);
    }
    assert!(seats.take(Standing::Agent(Some(1_000)), 0, &counters).is_none());
    taken[5].taken.stage.store(WAITING, Ordering::Release);
    assert!(seats.take(Standing::Agent(Some(1_000)), 0, &counters).is_some());
}

#[test]
fn seat_is_free_again_when_its_connection_ends() {
    let (seats, counters) = seats();
    for _ in 0..1_000 {
        drop(seats.take(GREEDY, 0, &counters).unwrap());
    }
    assert!(seats.row(Class::Agents).taken.lock().unwrap().is_empty());
}
