//! The fields of one head: names and values in one buffer, in the order they came.
//!
//! A worker keeps a few and fills them again and again, so that a request allocates nothing for its head.

/// A field that means something here. Everything else passes as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // Each is the field of that name.
pub enum Name {
    Authorization,
    Connection,
    ContentLength,
    ContentType,
    Cookie,
    Date,
    Expect,
    Host,
    Http2Settings,
    KeepAlive,
    ProxyAuthenticate,
    ProxyAuthorization,
    ProxyConnection,
    SetCookie,
    Te,
    Trailer,
    TransferEncoding,
    Upgrade,
    XForwardedFor,
    XForwardedHost,
    XForwardedProto,
    XRequestId,
    Other,
}

impl Name {
    /// Whose name `text` is, in whatever case.
    pub fn of(text: &[u8]) -> Name {
        let is = |name: &str| text.eq_ignore_ascii_case(name.as_bytes());
        // By length first: one or two comparisons for a field, most often none.
        match text.len() {
            2 if is("te") => Name::Te,
            4 if is("host") => Name::Host,
            4 if is("date") => Name::Date,
            6 if is("cookie") => Name::Cookie,
            6 if is("expect") => Name::Expect,
            7 if is("upgrade") => Name::Upgrade,
            7 if is("trailer") => Name::Trailer,
            10 if is("connection") => Name::Connection,
            10 if is("keep-alive") => Name::KeepAlive,
            10 if is("set-cookie") => Name::SetCookie,
            12 if is("content-type") => Name::ContentType,
            12 if is("x-request-id") => Name::XRequestId,
            13 if is("authorization") => Name::Authorization,
            14 if is("content-length") => Name::ContentLength,
            14 if is("http2-settings") => Name::Http2Settings,
            15 if is("x-forwarded-for") => Name::XForwardedFor,
            16 if is("x-forwarded-host") => Name::XForwardedHost,
            16 if is("proxy-connection") => Name::ProxyConnection,
            17 if is("transfer-encoding") => Name::TransferEncoding,
            17 if is("x-forwarded-proto") => Name::XForwardedProto,
            18 if is("proxy-authenticate") => Name::ProxyAuthenticate,
            19 if is("proxy-authorization") => Name::ProxyAuthorization,
            _ => Name::Other,
        }
    }

    /// Whether it concerns one connection only (RFC 9110 §7.6.1), whoever names it.
    pub fn is_hop_by_hop(self) -> bool {
        matches!(
            self,
            Name::Connection
                | Name::KeepAlive
                | Name::ProxyAuthenticate
                | Name::ProxyAuthorization
                | Name::ProxyConnection
                | Name::Te
                | Name::TransferEncoding
                | Name::Upgrade
                | Name::Http2Settings
        )
    }
}

/// One field.
#[derive(Clone, Copy, Debug)]
pub struct Field<'a> {
    /// What it means.
    pub name: Name,
    /// Its name as it came.
    pub text: &'a [u8],
    /// Its value, without white space around it.
    pub value: &'a [u8],
}

/// Where something stands in the buffer. Heads are far shorter than 4 GiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    at: u32,
    len: u32,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    name: Name,
    text: Span,
    value: Span,
}

/// See the file's head.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    bytes: Vec<u8>,
    slots: Vec<Slot>,
}

impl Fields {
    /// Forgets everything but the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.slots.clear();
    }

    /// Adds a field at the end.
    pub fn push(&mut self, text: &[u8], value: &[u8]) {
        let (name, text, value) = (Name::of(text), self.keep(text), self.keep(value));
        self.slots.push(Slot { name, text, value });
    }

    /// All fields, in order.
    pub fn iter(&self) -> impl Iterator<Item = Field<'_>> {
        self.slots.iter().map(|s| Field { name: s.name, text: self.at(s.text), value: self.at(s.value) })
    }

    /// The values of all fields `name`, in order.
    pub fn all(&self, name: Name) -> impl Iterator<Item = &[u8]> {
        self.slots.iter().filter(move |s| s.name == name).map(|s| self.at(s.value))
    }

    /// The first field `name`, if there is one.
    pub fn first(&self, name: Name) -> Option<&[u8]> {
        self.all(name).next()
    }

    /// Keeps bytes that are no field, such as a target.
    pub(super) fn keep(&mut self, bytes: &[u8]) -> Span {
        let at = self.bytes.len() as u32;
        self.bytes.extend_from_slice(bytes);
        Span { at, len: bytes.len() as u32 }
    }

    /// What [`Fields::keep`] kept.
    pub(super) fn at(&self, span: Span) -> &[u8] {
        &self.bytes[span.at as usize..][..span.len as usize]
    }
}

/// The members of a comma list (RFC 9110 §5.6.1), without empty ones.
pub fn members(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&b| b == b',').map(<[u8]>::trim_ascii).filter(|m| !m.is_empty())
}
