//! The query of a call: names and values, percent-encoded. Pure.

use percent_encoding::percent_decode_str;

use crate::proxy::explain::Question;

/// What `/v1/explain` is asked, with what is not said filled in; `turn` is whose turn it is. Fails with what is wrong,
/// and what to do.
pub fn question(query: &str, turn: usize) -> Result<Question, String> {
    let mut question = Question {
        method: "GET".to_owned(),
        path: "/".to_owned(),
        host: "localhost".to_owned(),
        fields: Vec::new(),
        client: "127.0.0.1".to_owned(),
        tried: Vec::new(),
        turn,
    };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decode_str(value)
            .decode_utf8()
            .map_err(|_| format!("{name} is not UTF-8 when its percent signs are decoded"))?
            .into_owned();
        if value.contains(char::is_control) {
            return Err(format!("{name} holds a control character, which no request can"));
        }
        match name {
            "method" => question.method = value,
            "path" => question.path = value,
            "host" => question.host = value,
            "client" => question.client = value,
            "tried" => question.tried.push(value),
            "header" => match value.split_once(':') {
                Some((name, value)) => question.fields.push((name.to_owned(), value.trim().to_owned())),
                None => return Err(format!("header={value} has no colon; write header=name:value")),
            },
            _ => {
                let known = "method, host, path, header (name:value, as often as you like), client, tried";
                return Err(format!("{name} is not known; known are {known}"));
            }
        }
    }
    match question.path.starts_with('/') {
        true => Ok(question),
        false => Err(format!("path={} does not begin with a slash", question.path)),
    }
}
