/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Http: the strict request head, shared by the master, its control socket and libup.
 *
 * The scanner looks at each byte once, however the head is cut into packets, and refuses at the
 * first byte that no good client sends: http-parser, as packaged, is lenient (it takes bare LF,
 * obs-fold, a space before the colon, …), and two opinions on where a request ends are a smuggling
 * hole. When the head is whole, http-parser reads it too, and both must agree.
 *
 * http.c scans, http-h2c.c removes, http-field.c is for readers of a head; http-text.h is theirs.
 *
 * Nothing is kept outside the objects; any thread.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum http_body {
	HTTP_BODY_NONE,
	HTTP_BODY_LENGTH,
	HTTP_BODY_CHUNKED,
};

enum http_scan_result {
	HTTP_MORE = 0,	  /* the head is not whole yet */
	HTTP_WHOLE = 1,	  /* scan->head describes it */
	HTTP_REFUSED = 2, /* scan->status and scan->reason say why */
};

/* Offsets are from the first byte given to the scanner. */
struct http_head {
	uint32_t start; /* 2 where a single CRLF came before the request line, else 0 (RFC
			   9112, 2.2) */
	uint32_t len;	/* from start up to and with the empty line */
	uint32_t target_len;
	uint16_t method_len;  /* the method begins at start, the target behind it and one space */
	uint8_t http_minor;   /* 0 or 1 */
	bool keep_alive;      /* RFC 9112, 9.3 */
	bool expect_continue; /* Expect: 100-continue, on HTTP/1.1 and with a body */
	bool upgrade;	      /* Connection: upgrade and an Upgrade other than h2c */
	bool h2c;	      /* Upgrade: h2c or HTTP2-Settings are there: http_head_remove_h2c() */
	enum http_body body;
	uint64_t body_len; /* HTTP_BODY_LENGTH; a length of 0 is HTTP_BODY_NONE */
};

struct http_scan {
	uint32_t at;	       /* bytes looked at, the refused one too */
	uint32_t head_max;     /* given to http_scan_init() */
	uint16_t status;       /* HTTP_REFUSED: 400 414 417 431 501 505 */
	const char *reason;    /* a static sentence for the body of the refusal and the log */
	struct http_head head; /* valid with HTTP_WHOLE */
	/* The rest is the scanner's own. */
	uint8_t state;
	uint8_t field;	   /* which of the fields that matter the current line is */
	uint16_t seen;	   /* what the lines so far held */
	uint32_t mark;	   /* where the authority, the version or the line began */
	uint32_t name_len; /* of the current line's field name */
};

/*
 * head_max: bytes from the request line to the empty line; past it 431, or 414 within the target. A
 * CRLF before the request line is not counted, so a buffer of head_max + 2 bytes holds every head.
 */
void http_scan_init(struct http_scan *scan, uint32_t head_max);
/*
 * Goes on with data, which is all that came since the start (len >= scan->at; it may have moved in
 * memory since the last call). Bytes behind the head are not looked at. Once whole or refused, it
 * stays so.
 *
 * The first whole head of a process raises http-parser's limit on the length of heads, which is one
 * for the whole process; head_max is the limit that counts.
 */
enum http_scan_result http_scan(struct http_scan *scan, const char *data, size_t len);

/*
 * Removes Upgrade: h2c and HTTP2-Settings, and their names from Connection, in place (RFC
 * 7540, 3.2: a server may ignore the wish). data is the head as scanned, from its first byte;
 * head->len shrinks. Returns the bytes removed; the caller moves what follows the head.
 */
uint32_t http_head_remove_h2c(char *data, struct http_head *head);

/* One field of a whole head. */
struct http_field {
	const char *name, *value; /* not terminated; value without surrounding space */
	uint32_t name_len, value_len;
};
/*
 * Walks the fields of a whole, accepted head: *at is 0 to begin with. `data` points at head.start.
 * Returns false past the last.
 */
bool http_next_field(const char *data, uint32_t head_len, uint32_t *at, struct http_field *out);

/* Whether a token list value (RFC 9110, 5.6.1) holds the token, in any case. */
bool http_list_has(const char *value, size_t len, const char *token);
/* Whether text is a token (RFC 9110, 5.6.2), not empty. */
bool http_is_token(const char *text, size_t len);
/* Whether text may stand as a field value: no CTL but HTAB. */
bool http_is_value(const char *text, size_t len);
/* The reason phrase for a status; "Unknown" where there is none. Never NULL. */
const char *http_reason(unsigned status);

/* What a byte may stand for: http_bytes[byte] holds these bits. Shared with chunked.c. */
enum http_byte {
	HTTP_BYTE_TOKEN = 0x01,	 /* RFC 9110, 5.6.2 */
	HTTP_BYTE_VALUE = 0x02,	 /* a field value: no CTL but HTAB */
	HTTP_BYTE_TARGET = 0x04, /* a request target: visible ASCII but # */
	HTTP_BYTE_HOST = 0x08,	 /* a registered name: RFC 3986, 3.2.2, without the comma */
	HTTP_BYTE_HEX = 0x10,
	HTTP_BYTE_DIGIT = 0x20,
};
extern const uint8_t http_bytes[256];
