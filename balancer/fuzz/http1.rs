//! Feeds the HTTP/1 codec whatever leads it along new paths. The first byte says where the bytes are cut into two
//! arrivals; what must hold is in `reading::check`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../src/proxy/http1/mod.rs"]
#[allow(dead_code, unused_imports)]
mod codec;
#[path = "../src/proxy/http1/tests/reading.rs"]
mod reading;

fuzz_target!(|bytes: &[u8]| {
    if let Some((&cut, bytes)) = bytes.split_first() {
        reading::check(bytes, usize::from(cut));
    }
});
