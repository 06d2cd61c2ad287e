//! The OTLP messages as tables: one description that the wire scan and both JSON directions walk.
//!
//! Source: opentelemetry-proto 1.10 (`opentelemetry/proto/**/v1/*.proto`). A test compares accept and reject with
//! the types generated from the same files.

use super::Signal;

/// What a field holds, and so its wire type and its form in JSON.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Bool,
    /// `int32`.
    Int32,
    /// An enum, with its names from number 0 on.
    Enum(&'static [&'static str]),
    Uint32,
    Int64,
    Uint64,
    Sint32,
    Fixed32,
    Fixed64,
    Sfixed64,
    Double,
    Text,
    /// Base64 in JSON.
    Blob,
    /// A trace or span id: hexadecimal in JSON.
    Id,
    Message(&'static Message),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireType {
    Varint = 0,
    Fixed64 = 1,
    Delimited = 2,
    Fixed32 = 5,
}

impl Kind {
    pub const fn wire_type(self) -> WireType {
        match self {
            Kind::Bool | Kind::Int32 | Kind::Enum(_) | Kind::Uint32 | Kind::Int64 | Kind::Uint64 | Kind::Sint32 => {
                WireType::Varint
            }
            Kind::Fixed64 | Kind::Sfixed64 | Kind::Double => WireType::Fixed64,
            Kind::Fixed32 => WireType::Fixed32,
            Kind::Text | Kind::Blob | Kind::Id | Kind::Message(_) => WireType::Delimited,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Field {
    pub number: u32,
    /// As in the `.proto` file.
    pub name: &'static str,
    /// lowerCamelCase, as in JSON.
    pub json: &'static str,
    pub kind: Kind,
    pub repeated: bool,
    /// Member of the message's oneof; setting one replaces another.
    pub oneof: bool,
    /// Each occurrence is one span, data point or log record.
    pub item: bool,
    /// A message that items lie in: resource, scope, metric.
    pub envelope: bool,
    /// The kind's wire type, so that the scan need not ask.
    pub wire_type: WireType,
    /// A repeated `KeyValue`, which most bytes of a request are in.
    attribute: bool,
}

impl Field {
    const fn repeated(mut self) -> Field {
        self.repeated = true;
        self
    }
    const fn oneof(mut self) -> Field {
        self.oneof = true;
        self
    }
    const fn items(mut self) -> Field {
        self.repeated = true;
        self.item = true;
        self
    }
    const fn envelope(mut self) -> Field {
        self.envelope = true;
        self
    }
}

const fn field(number: u32, name: &'static str, json: &'static str, kind: Kind) -> Field {
    Field {
        number,
        name,
        json,
        kind,
        repeated: false,
        oneof: false,
        item: false,
        envelope: false,
        wire_type: kind.wire_type(),
        attribute: false,
    }
}

const fn attributes(number: u32, name: &'static str, json: &'static str) -> Field {
    let mut field = field(number, name, json, Kind::Message(&KEY_VALUE)).repeated();
    field.attribute = true;
    field
}

/// What a scan has to do with a field, told by its key alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Not in the schema under this wire type: unknown, packed or wrong.
    Other,
    Varint,
    Fixed64,
    Fixed32,
    Text,
    /// Bytes that need no look.
    Blob,
    /// Field 1 where it is an id, as a span's trace id.
    FirstId,
    /// Field 2 where it is an id, as a span's own id.
    SecondId,
    Attribute,
    Message,
    /// A message that replaces another member of its oneof.
    OneofMessage,
}

impl Step {
    const fn of(field: &Field) -> Step {
        match field.kind {
            Kind::Message(_) if field.attribute => Step::Attribute,
            Kind::Message(_) if field.oneof => Step::OneofMessage,
            Kind::Message(_) => Step::Message,
            Kind::Text => Step::Text,
            Kind::Id if field.number == 1 => Step::FirstId,
            Kind::Id if field.number == 2 => Step::SecondId,
            _ => match field.wire_type {
                WireType::Varint => Step::Varint,
                WireType::Fixed64 => Step::Fixed64,
                WireType::Fixed32 => Step::Fixed32,
                WireType::Delimited => Step::Blob,
            },
        }
    }
}

/// Field numbers are below this in every OTLP message.
const NUMBER_END: usize = 17;
/// No message has more fields than this.
pub const FIELDS_MAX: usize = NUMBER_END - 1;
/// Keys are below this: a key is the field's number and, in the low three bits, its wire type.
const KEY_END: usize = 256;
const _: () = assert!(NUMBER_END << 3 <= KEY_END);

#[derive(Debug)]
pub struct Message {
    pub name: &'static str,
    pub fields: &'static [Field],
    /// By field number.
    by_number: [Option<&'static Field>; NUMBER_END],
    by_key: [Step; KEY_END],
}

impl Message {
    const fn new(name: &'static str, fields: &'static [Field]) -> Message {
        let mut by_number = [None; NUMBER_END];
        let mut by_key = [Step::Other; KEY_END];
        let mut at = 0;
        while at < fields.len() {
            let field = &fields[at];
            by_number[field.number as usize] = Some(field);
            by_key[(field.number as usize) << 3 | field.wire_type as usize] = Step::of(field);
            at += 1;
        }
        Message { name, fields, by_number, by_key }
    }

    /// What to do with a field that has this key.
    #[inline]
    pub fn step(&self, key: u8) -> Step {
        self.by_key[usize::from(key)]
    }

    /// Where in `fields` the field of that number stands.
    pub fn place(&self, number: u32) -> Option<usize> {
        self.fields.iter().position(|field| field.number == number)
    }

    #[inline]
    pub fn field(&self, number: u32) -> Option<&'static Field> {
        self.by_number.get(number as usize).copied().flatten()
    }

    /// Finds a field by its JSON name or its proto name.
    pub fn field_named(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.json == name || field.name == name)
    }
}

/// The `Export*ServiceRequest` of a signal.
pub fn request(signal: Signal) -> &'static Message {
    match signal {
        Signal::Traces => &TRACES_REQUEST,
        Signal::Metrics => &METRICS_REQUEST,
        Signal::Logs => &LOGS_REQUEST,
    }
}

/// Whether this is the message whose identity a scan looks for.
pub fn is_span(message: &'static Message) -> bool {
    std::ptr::eq(message, &SPAN)
}

use Kind::{Blob, Bool, Double, Enum, Fixed32, Fixed64, Id, Int32, Int64, Sfixed64, Sint32, Text, Uint32, Uint64};

static ANY_VALUE: Message = Message::new(
    "AnyValue",
    &[
        field(1, "string_value", "stringValue", Text).oneof(),
        field(2, "bool_value", "boolValue", Bool).oneof(),
        field(3, "int_value", "intValue", Int64).oneof(),
        field(4, "double_value", "doubleValue", Double).oneof(),
        field(5, "array_value", "arrayValue", Kind::Message(&ARRAY_VALUE)).oneof(),
        field(6, "kvlist_value", "kvlistValue", Kind::Message(&KEY_VALUE_LIST)).oneof(),
        field(7, "bytes_value", "bytesValue", Blob).oneof(),
        field(8, "string_value_strindex", "stringValueStrindex", Int32).oneof(),
    ],
);
static ARRAY_VALUE: Message =
    Message::new("ArrayValue", &[field(1, "values", "values", Kind::Message(&ANY_VALUE)).repeated()]);
static KEY_VALUE_LIST: Message = Message::new("KeyValueList", &[attributes(1, "values", "values")]);
static KEY_VALUE: Message = Message::new(
    "KeyValue",
    &[
        field(1, "key", "key", Text),
        field(2, "value", "value", Kind::Message(&ANY_VALUE)),
        field(3, "key_strindex", "keyStrindex", Int32),
    ],
);
static SCOPE: Message = Message::new(
    "InstrumentationScope",
    &[
        field(1, "name", "name", Text),
        field(2, "version", "version", Text),
        attributes(3, "attributes", "attributes"),
        field(4, "dropped_attributes_count", "droppedAttributesCount", Uint32),
    ],
);
static ENTITY_REF: Message = Message::new(
    "EntityRef",
    &[
        field(1, "schema_url", "schemaUrl", Text),
        field(2, "type", "type", Text),
        field(3, "id_keys", "idKeys", Text).repeated(),
        field(4, "description_keys", "descriptionKeys", Text).repeated(),
    ],
);
static RESOURCE: Message = Message::new(
    "Resource",
    &[
        attributes(1, "attributes", "attributes"),
        field(2, "dropped_attributes_count", "droppedAttributesCount", Uint32),
        field(3, "entity_refs", "entityRefs", Kind::Message(&ENTITY_REF)).repeated(),
    ],
);

static TRACES_REQUEST: Message = Message::new(
    "ExportTraceServiceRequest",
    &[field(1, "resource_spans", "resourceSpans", Kind::Message(&RESOURCE_SPANS)).repeated().envelope()],
);
static RESOURCE_SPANS: Message = Message::new(
    "ResourceSpans",
    &[
        field(1, "resource", "resource", Kind::Message(&RESOURCE)),
        field(2, "scope_spans", "scopeSpans", Kind::Message(&SCOPE_SPANS)).repeated().envelope(),
        field(3, "schema_url", "schemaUrl", Text),
    ],
);
static SCOPE_SPANS: Message = Message::new(
    "ScopeSpans",
    &[
        field(1, "scope", "scope", Kind::Message(&SCOPE)),
        field(2, "spans", "spans", Kind::Message(&SPAN)).items(),
        field(3, "schema_url", "schemaUrl", Text),
    ],
);
const SPAN_KINDS: &[&str] = &[
    "SPAN_KIND_UNSPECIFIED",
    "SPAN_KIND_INTERNAL",
    "SPAN_KIND_SERVER",
    "SPAN_KIND_CLIENT",
    "SPAN_KIND_PRODUCER",
    "SPAN_KIND_CONSUMER",
];
const STATUS_CODES: &[&str] = &["STATUS_CODE_UNSET", "STATUS_CODE_OK", "STATUS_CODE_ERROR"];
static SPAN: Message = Message::new(
    "Span",
    &[
        field(1, "trace_id", "traceId", Id),
        field(2, "span_id", "spanId", Id),
        field(3, "trace_state", "traceState", Text),
        field(4, "parent_span_id", "parentSpanId", Id),
        field(16, "flags", "flags", Fixed32),
        field(5, "name", "name", Text),
        field(6, "kind", "kind", Enum(SPAN_KINDS)),
        field(7, "start_time_unix_nano", "startTimeUnixNano", Fixed64),
        field(8, "end_time_unix_nano", "endTimeUnixNano", Fixed64),
        attributes(9, "attributes", "attributes"),
        field(10, "dropped_attributes_count", "droppedAttributesCount", Uint32),
        field(11, "events", "events", Kind::Message(&EVENT)).repeated(),
        field(12, "dropped_events_count", "droppedEventsCount", Uint32),
        field(13, "links", "links", Kind::Message(&LINK)).repeated(),
        field(14, "dropped_links_count", "droppedLinksCount", Uint32),
        field(15, "status", "status", Kind::Message(&STATUS)),
    ],
);
static EVENT: Message = Message::new(
    "Event",
    &[
        field(1, "time_unix_nano", "timeUnixNano", Fixed64),
        field(2, "name", "name", Text),
        attributes(3, "attributes", "attributes"),
        field(4, "dropped_attributes_count", "droppedAttributesCount", Uint32),
    ],
);
static LINK: Message = Message::new(
    "Link",
    &[
        field(1, "trace_id", "traceId", Id),
        field(2, "span_id", "spanId", Id),
        field(3, "trace_state", "traceState", Text),
        attributes(4, "attributes", "attributes"),
        field(5, "dropped_attributes_count", "droppedAttributesCount", Uint32),
        field(6, "flags", "flags", Fixed32),
    ],
);
static STATUS: Message =
    Message::new("Status", &[field(2, "message", "message", Text), field(3, "code", "code", Enum(STATUS_CODES))]);

static METRICS_REQUEST: Message = Message::new(
    "ExportMetricsServiceRequest",
    &[field(1, "resource_metrics", "resourceMetrics", Kind::Message(&RESOURCE_METRICS)).repeated().envelope()],
);
static RESOURCE_METRICS: Message = Message::new(
    "ResourceMetrics",
    &[
        field(1, "resource", "resource", Kind::Message(&RESOURCE)),
        field(2, "scope_metrics", "scopeMetrics", Kind::Message(&SCOPE_METRICS)).repeated().envelope(),
        field(3, "schema_url", "schemaUrl", Text),
    ],
);
static SCOPE_METRICS: Message = Message::new(
    "ScopeMetrics",
    &[
        field(1, "scope", "scope", Kind::Message(&SCOPE)),
        field(2, "metrics", "metrics", Kind::Message(&METRIC)).repeated().envelope(),
        field(3, "schema_url", "schemaUrl", Text),
    ],
);
static METRIC: Message = Message::new(
    "Metric",
    &[
        field(1, "name", "name", Text),
        field(2, "description", "description", Text),
        field(3, "unit", "unit", Text),
        field(5, "gauge", "gauge", Kind::Message(&GAUGE)).oneof().envelope(),
        field(7, "sum", "sum", Kind::Message(&SUM)).oneof().envelope(),
        field(9, "histogram", "histogram", Kind::Message(&HISTOGRAM)).oneof().envelope(),
        field(10, "exponential_histogram", "exponentialHistogram", Kind::Message(&EXPONENTIAL_HISTOGRAM))
            .oneof()
            .envelope(),
        field(11, "summary", "summary", Kind::Message(&SUMMARY)).oneof().envelope(),
        attributes(12, "metadata", "metadata"),
    ],
);
const TEMPORALITIES: &[&str] =
    &["AGGREGATION_TEMPORALITY_UNSPECIFIED", "AGGREGATION_TEMPORALITY_DELTA", "AGGREGATION_TEMPORALITY_CUMULATIVE"];
const TEMPORALITY: Field = field(2, "aggregation_temporality", "aggregationTemporality", Enum(TEMPORALITIES));
static GAUGE: Message =
    Message::new("Gauge", &[field(1, "data_points", "dataPoints", Kind::Message(&NUMBER_DATA_POINT)).items()]);
static SUM: Message = Message::new(
    "Sum",
    &[
        field(1, "data_points", "dataPoints", Kind::Message(&NUMBER_DATA_POINT)).items(),
        TEMPORALITY,
        field(3, "is_monotonic", "isMonotonic", Bool),
    ],
);
static HISTOGRAM: Message = Message::new(
    "Histogram",
    &[field(1, "data_points", "dataPoints", Kind::Message(&HISTOGRAM_DATA_POINT)).items(), TEMPORALITY],
);
static EXPONENTIAL_HISTOGRAM: Message = Message::new(
    "ExponentialHistogram",
    &[field(1, "data_points", "dataPoints", Kind::Message(&EXPONENTIAL_DATA_POINT)).items(), TEMPORALITY],
);
static SUMMARY: Message =
    Message::new("Summary", &[field(1, "data_points", "dataPoints", Kind::Message(&SUMMARY_DATA_POINT)).items()]);
const START_TIME: Field = field(2, "start_time_unix_nano", "startTimeUnixNano", Fixed64);
const TIME: Field = field(3, "time_unix_nano", "timeUnixNano", Fixed64);
static NUMBER_DATA_POINT: Message = Message::new(
    "NumberDataPoint",
    &[
        attributes(7, "attributes", "attributes"),
        START_TIME,
        TIME,
        field(4, "as_double", "asDouble", Double).oneof(),
        field(6, "as_int", "asInt", Sfixed64).oneof(),
        field(5, "exemplars", "exemplars", Kind::Message(&EXEMPLAR)).repeated(),
        field(8, "flags", "flags", Uint32),
    ],
);
static HISTOGRAM_DATA_POINT: Message = Message::new(
    "HistogramDataPoint",
    &[
        attributes(9, "attributes", "attributes"),
        START_TIME,
        TIME,
        field(4, "count", "count", Fixed64),
        field(5, "sum", "sum", Double),
        field(6, "bucket_counts", "bucketCounts", Fixed64).repeated(),
        field(7, "explicit_bounds", "explicitBounds", Double).repeated(),
        field(8, "exemplars", "exemplars", Kind::Message(&EXEMPLAR)).repeated(),
        field(10, "flags", "flags", Uint32),
        field(11, "min", "min", Double),
        field(12, "max", "max", Double),
    ],
);
static EXPONENTIAL_DATA_POINT: Message = Message::new(
    "ExponentialHistogramDataPoint",
    &[
        attributes(1, "attributes", "attributes"),
        START_TIME,
        TIME,
        field(4, "count", "count", Fixed64),
        field(5, "sum", "sum", Double),
        field(6, "scale", "scale", Sint32),
        field(7, "zero_count", "zeroCount", Fixed64),
        field(8, "positive", "positive", Kind::Message(&BUCKETS)),
        field(9, "negative", "negative", Kind::Message(&BUCKETS)),
        field(10, "flags", "flags", Uint32),
        field(11, "exemplars", "exemplars", Kind::Message(&EXEMPLAR)).repeated(),
        field(12, "min", "min", Double),
        field(13, "max", "max", Double),
        field(14, "zero_threshold", "zeroThreshold", Double),
    ],
);
static BUCKETS: Message = Message::new(
    "Buckets",
    &[field(1, "offset", "offset", Sint32), field(2, "bucket_counts", "bucketCounts", Uint64).repeated()],
);
static SUMMARY_DATA_POINT: Message = Message::new(
    "SummaryDataPoint",
    &[
        attributes(7, "attributes", "attributes"),
        START_TIME,
        TIME,
        field(4, "count", "count", Fixed64),
        field(5, "sum", "sum", Double),
        field(6, "quantile_values", "quantileValues", Kind::Message(&VALUE_AT_QUANTILE)).repeated(),
        field(8, "flags", "flags", Uint32),
    ],
);
static VALUE_AT_QUANTILE: Message =
    Message::new("ValueAtQuantile", &[field(1, "quantile", "quantile", Double), field(2, "value", "value", Double)]);
static EXEMPLAR: Message = Message::new(
    "Exemplar",
    &[
        attributes(7, "filtered_attributes", "filteredAttributes"),
        field(2, "time_unix_nano", "timeUnixNano", Fixed64),
        field(3, "as_double", "asDouble", Double).oneof(),
        field(6, "as_int", "asInt", Sfixed64).oneof(),
        field(4, "span_id", "spanId", Id),
        field(5, "trace_id", "traceId", Id),
    ],
);

static LOGS_REQUEST: Message = Message::new(
    "ExportLogsServiceRequest",
    &[field(1, "resource_logs", "resourceLogs", Kind::Message(&RESOURCE_LOGS)).repeated().envelope()],
);
static RESOURCE_LOGS: Message = Message::new(
    "ResourceLogs",
    &[
        field(1, "resource", "resource", Kind::Message(&RESOURCE)),
        field(2, "scope_logs", "scopeLogs", Kind::Message(&SCOPE_LOGS)).repeated().envelope(),
        field(3, "schema_url", "schemaUrl", Text),
    ],
);
static SCOPE_LOGS: Message = Message::new(
    "ScopeLogs",
    &[
        field(1, "scope", "scope", Kind::Message(&SCOPE)),
        field(2, "log_records", "logRecords", Kind::Message(&LOG_RECORD)).items(),
        field(3, "schema_url", "schemaUrl", Text),
    ],
);
const SEVERITIES: &[&str] = &[
    "SEVERITY_NUMBER_UNSPECIFIED",
    "SEVERITY_NUMBER_TRACE",
    "SEVERITY_NUMBER_TRACE2",
    "SEVERITY_NUMBER_TRACE3",
    "SEVERITY_NUMBER_TRACE4",
    "SEVERITY_NUMBER_DEBUG",
    "SEVERITY_NUMBER_DEBUG2",
    "SEVERITY_NUMBER_DEBUG3",
    "SEVERITY_NUMBER_DEBUG4",
    "SEVERITY_NUMBER_INFO",
    "SEVERITY_NUMBER_INFO2",
    "SEVERITY_NUMBER_INFO3",
    "SEVERITY_NUMBER_INFO4",
    "SEVERITY_NUMBER_WARN",
    "SEVERITY_NUMBER_WARN2",
    "SEVERITY_NUMBER_WARN3",
    "SEVERITY_NUMBER_WARN4",
    "SEVERITY_NUMBER_ERROR",
    "SEVERITY_NUMBER_ERROR2",
    "SEVERITY_NUMBER_ERROR3",
    "SEVERITY_NUMBER_ERROR4",
    "SEVERITY_NUMBER_FATAL",
    "SEVERITY_NUMBER_FATAL2",
    "SEVERITY_NUMBER_FATAL3",
    "SEVERITY_NUMBER_FATAL4",
];
static LOG_RECORD: Message = Message::new(
    "LogRecord",
    &[
        field(1, "time_unix_nano", "timeUnixNano", Fixed64),
        field(11, "observed_time_unix_nano", "observedTimeUnixNano", Fixed64),
        field(2, "severity_number", "severityNumber", Enum(SEVERITIES)),
        field(3, "severity_text", "severityText", Text),
        field(5, "body", "body", Kind::Message(&ANY_VALUE)),
        attributes(6, "attributes", "attributes"),
        field(7, "dropped_attributes_count", "droppedAttributesCount", Uint32),
        field(8, "flags", "flags", Fixed32),
        field(9, "trace_id", "traceId", Id),
        field(10, "span_id", "spanId", Id),
        field(12, "event_name", "eventName", Text),
    ],
);
