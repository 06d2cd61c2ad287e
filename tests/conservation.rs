//! accepted = queued + delivered + deduplicated + dead-lettered + dropped, as the metrics page says it, over restarts and
//! kill -9, and against what the clients and the destination have counted themselves.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use support::dlq;
use support::ledger::{self, Ledger};
use support::setup::Setup;
use support::{Sink, client, eventually, request};

const POISON: &str = "tool-call";

fn setup(sink: &str, more: &str, forebay: &str) -> Setup {
    let exporter = format!(
        "{{endpoint: 'http://{sink}', retry_on_failure: {{initial_interval: 20ms, max_interval: 50ms}}, \
         sending_queue: {{batch: {{flush_timeout: 5ms}}{more}}}}}"
    );
    Setup::new("otlp_http", &exporter, forebay)
}

async fn post(setup: &Setup, client: &reqwest::Client, names: &[String]) {
    let url = format!("http://127.0.0.1:{}/v1/traces", setup.http_port);
    let sending = client.post(url).header("content-type", "application/x-protobuf").body(request(names)).send();
    assert_eq!(sending.await.expect("answered").status(), 200);
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}-{n}")).collect()
}

/// One page's account of the exporter: what it accepted, and by state (or the reason of what was dropped) what became of it.
#[derive(Debug, Default, PartialEq)]
struct Account {
    accepted: u64,
    rebased: u64,
    states: BTreeMap<String, u64>,
}

impl Account {
    async fn read(setup: &Setup, client: &reqwest::Client) -> Account {
        let url = format!("http://127.0.0.1:{}/metrics", setup.metrics_port);
        let page = client.get(url).send().await.expect("a page").text().await.expect("text");
        let mut account = Account::default();
        for line in page.lines().filter(|line| line.starts_with("forebay_account_")) {
            assert!(line.contains("exporter=\"otlp_http\"") && line.contains("queue=\"traces\""), "{line}");
            let value: u64 = line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number");
            let label = |name: &str| {
                line.split(&format!("{name}=\"")).nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default()
            };
            if line.starts_with("forebay_account_accepted_items") {
                account.accepted = value;
            } else if line.starts_with("forebay_account_rebased") {
                account.rebased = value;
            } else {
                let name = if label("reason").is_empty() { label("state") } else { label("reason") };
                account.states.insert(name.to_owned(), value);
            }
        }
        // At every moment, not only when nothing moves.
        assert_eq!(account.states.len(), 8, "{page}");
        assert_eq!(account.accepted, account.states.values().sum::<u64>(), "{account:?}");
        assert_eq!(account.rebased, 0, "{account:?}");
        account
    }

    fn of(accepted: u64, states: &[(&str, u64)]) -> Account {
        let all = [
            "queued",
            "delivered",
            "deduplicated",
            "dead_lettered",
            "rejected",
            "queue_full",
            "dead_letters_full",
            "damaged",
        ];
        let mut found: BTreeMap<String, u64> = all.iter().map(|name| ((*name).to_owned(), 0)).collect();
        found.extend(states.iter().map(|(name, items)| ((*name).to_owned(), *items)));
        Account { accepted, rebased: 0, states: found }
    }
}

async fn becomes(setup: &Setup, client: &reqwest::Client, expected: &Account) {
    let mut last = Account::default();
    let started = std::time::Instant::now();
    while started.elapsed() < support::PATIENCE {
        last = Account::read(setup, client).await;
        if last == *expected {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(last, *expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_item_is_counted_once_whatever_becomes_of_it_and_over_restarts_and_kill_9() {
    let (sink, address) = Sink::start().await;
    *sink.poison.lock() = POISON.to_owned();
    let setup = setup(&address.to_string(), "", "{}");
    let client = client();
    let forebay = setup.start(&client).await;
    let first = names("first", 1000);
    post(&setup, &client, &first).await;
    post(&setup, &client, &first).await;
    let mut with_poison = names("second", 97);
    with_poison.extend(names(POISON, 3));
    post(&setup, &client, &with_poison).await;
    let expected = Account::of(2100, &[("delivered", 1097), ("deduplicated", 1000), ("dead_lettered", 3)]);
    becomes(&setup, &client, &expected).await;

    // Rejected by a partial success: never sent again, dropped.
    sink.reject_spans.store(4, Ordering::SeqCst);
    post(&setup, &client, &names("third", 10)).await;
    let delivered = ("delivered", 1103);
    let settled = [delivered, ("deduplicated", 1000), ("dead_lettered", 3), ("rejected", 4)];
    becomes(&setup, &client, &Account::of(2110, &settled)).await;
    sink.reject_spans.store(0, Ordering::SeqCst);

    assert_eq!(forebay.stop().await, 0);
    let forebay = setup.start(&client).await;
    assert_eq!(Account::read(&setup, &client).await, Account::of(2110, &settled), "as it was before the restart");

    sink.refuse_with.store(503, Ordering::SeqCst);
    post(&setup, &client, &names("fourth", 500)).await;
    let waiting = [&settled[..], &[("queued", 500)]].concat();
    becomes(&setup, &client, &Account::of(2610, &waiting)).await;
    forebay.kill();
    let forebay = setup.start(&client).await;
    assert_eq!(Account::read(&setup, &client).await, Account::of(2610, &waiting), "as it was before kill -9");
    sink.refuse_with.store(0, Ordering::SeqCst);
    let settled = [("delivered", 1603), ("deduplicated", 1000), ("dead_lettered", 3), ("rejected", 4)];
    becomes(&setup, &client, &Account::of(2610, &settled)).await;
    assert_eq!(forebay.stop().await, 0);
}

/// Sends requests of a good and a poisonous span until it is told to stop; how many were acknowledged.
async fn poison(client: reqwest::Client, url: String, round: usize, stop: Arc<AtomicBool>) -> u64 {
    let mut acknowledged = 0;
    for n in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let body = request(&[format!("beside-{round}-{n}"), format!("{POISON}-{round}-{n}")]);
        let sending = client.post(&url).header("content-type", "application/x-protobuf").body(body).send();
        acknowledged += u64::from(sending.await.is_ok_and(|answer| answer.status().is_success()));
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_under_load_time_and_again_the_account_agrees_with_the_destination() {
    let (sink, address) = Sink::start().await;
    // Some requests fail, so that records settle out of order and are sent again.
    sink.fail_every.store(7, Ordering::SeqCst);
    *sink.poison.lock() = POISON.to_owned();
    let setup = setup(&address.to_string(), "", "{}");
    let client = client();
    let sent = Arc::new(Ledger::default());
    let url = format!("http://127.0.0.1:{}/v1/traces", setup.http_port);
    let mut poison_acknowledged = 0;
    for round in 0..6 {
        let forebay = setup.start(&client).await;
        let stop = Arc::new(AtomicBool::new(false));
        let before = sent.acknowledged.lock().len();
        let loads: Vec<_> = (0..3)
            .map(|_| tokio::spawn(ledger::load(client.clone(), url.clone(), 20, Arc::clone(&sent), Arc::clone(&stop))))
            .collect();
        let poisoning = tokio::spawn(poison(client.clone(), url.clone(), round, Arc::clone(&stop)));
        eventually("much is acknowledged", async || sent.acknowledged.lock().len() >= before + 4000).await;
        Account::read(&setup, &client).await;
        forebay.kill();
        stop.store(true, Ordering::SeqCst);
        for load in loads {
            load.await.expect("a loader ends");
        }
        poison_acknowledged += poisoning.await.expect("it ends");
    }
    let forebay = setup.start(&client).await;
    eventually("all is delivered", async || Account::read(&setup, &client).await.states["queued"] == 0).await;
    let account = Account::read(&setup, &client).await;
    let (acknowledged, taken) = (sent.acknowledged.lock().len() as u64, sink.taken.lock().len() as u64);
    // What was stored and whose answer the kill cut off is accepted too. What came twice is delivered once.
    assert!(account.accepted >= acknowledged + 2 * poison_acknowledged, "{account:?} of {acknowledged}");
    let dead_lettered = account.states["dead_lettered"];
    assert_eq!((account.accepted - dead_lettered, account.states["delivered"]), (taken, taken), "{account:?}");
    // And what was parked when a kill undid its settling is one letter.
    assert!(dead_lettered >= poison_acknowledged && poison_acknowledged > 100, "{account:?}, {poison_acknowledged}");
    assert_eq!(dlq::letters(&setup.dir.path().join("data")).len() as u64, dead_lettered);
    let exported = dlq::stdout(&dlq::dlq(&["export"], &setup.dir.path().join("data")));
    let lines = exported.lines().map(|line| line.split(POISON).nth(1).and_then(|rest| rest.split('"').next()));
    let names: std::collections::BTreeSet<_> = lines.map(|name| name.expect("poison")).collect();
    assert_eq!(names.len() as u64, dead_lettered, "each once");
    assert!(sink.taken.lock().values().any(|(times, _)| *times > 1), "something was sent twice");
    assert_eq!(forebay.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_gives_way_at_the_cap_is_counted_as_dropped() {
    let (sink, address) = Sink::start().await;
    sink.refuse_with.store(503, Ordering::SeqCst);
    let limit = ", sizer: items, queue_size: 100";
    let setup = setup(&address.to_string(), limit, "{exporters: {otlp_http: {on_full: drop}}}");
    let client = client();
    let forebay = setup.start(&client).await;
    for n in 0..30 {
        post(&setup, &client, &names(&format!("round-{n}"), 10)).await;
    }
    let started = std::time::Instant::now();
    while Account::read(&setup, &client).await.states["queued"] > 100 {
        let (account, requests) = (Account::read(&setup, &client).await, sink.requests.load(Ordering::SeqCst));
        let log = std::fs::read_to_string(setup.dir.path().join("log")).unwrap_or_default();
        assert!(started.elapsed() < support::PATIENCE / 6, "the oldest stay: {account:?}, {requests} requests, {log}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    sink.refuse_with.store(0, Ordering::SeqCst);
    eventually("the rest is delivered", async || Account::read(&setup, &client).await.states["queued"] == 0).await;
    let account = Account::read(&setup, &client).await;
    let taken = sink.taken.lock().len() as u64;
    let expected = Account::of(300, &[("delivered", taken), ("queue_full", 300 - taken)]);
    assert_eq!(account, expected);
    assert!(taken <= 110, "{taken}");
    assert_eq!(forebay.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_gives_way_at_the_cap_is_parked_where_that_is_wanted_and_a_replay_delivers_it() {
    let (sink, address) = Sink::start().await;
    sink.refuse_with.store(503, Ordering::SeqCst);
    let limit = ", sizer: items, queue_size: 100";
    let setup = setup(&address.to_string(), limit, "{exporters: {otlp_http: {on_full: park}}}");
    let client = client();
    let forebay = setup.start(&client).await;
    for n in 0..30 {
        post(&setup, &client, &names(&format!("round-{n}"), 10)).await;
    }
    eventually("the oldest give way", async || Account::read(&setup, &client).await.states["queued"] <= 100).await;
    sink.refuse_with.store(0, Ordering::SeqCst);
    eventually("the rest is delivered", async || Account::read(&setup, &client).await.states["queued"] == 0).await;
    let delivered = sink.taken.lock().len() as u64;
    assert!(delivered <= 110, "{delivered}");
    let account = Account::of(300, &[("delivered", delivered), ("dead_lettered", 300 - delivered)]);
    assert_eq!(Account::read(&setup, &client).await, account);

    let data_dir = setup.dir.path().join("data");
    let letters = dlq::letters(&data_dir);
    assert!(letters.iter().all(|letter| letter["reason"] == "queue_full"), "{letters:?}");
    let parked: u64 = letters.iter().map(|letter| letter["items"].as_u64().expect("a count")).sum();
    assert_eq!(parked, 300 - delivered);
    dlq::stdout(&dlq::dlq(&["replay", "--all"], &data_dir));
    assert_eq!(sink.taken.lock().len(), 300);
    assert!(dlq::letters(&data_dir).is_empty());
    assert_eq!(forebay.stop().await, 0);
}
