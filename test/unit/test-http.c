/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "common/http.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define HEAD_MAX 1024
#define N(array) (sizeof(array) / sizeof((array)[0]))
#define BYTES(text) .bytes = (text), .len = sizeof(text) - 1

/* A request that lacks its fields' end, and one that lacks a request line's end. */
#define GET "GET / HTTP/1.1\r\n"
#define GET_HOST GET "Host: a\r\n"
#define POST_HOST "POST / HTTP/1.1\r\nHost: a\r\n"
#define OLD "GET / HTTP/1.0\r\n"
#define A16 "aaaaaaaaaaaaaaaa"
#define A64 A16 A16 A16 A16
#define A256 A64 A64 A64 A64

struct refusal {
	const char *name;
	const char *bytes;
	size_t len; /* the last of them is the one that is refused */
	unsigned status;
};

/* Each must be refused at its last byte, and not before. */
static const struct refusal refusals[] = {
	/* What is no HTTP at all. */
	{ "tls_is_refused_at_its_first_byte", BYTES("\x16"), 400 },
	{ "http2_preface_is_505", BYTES("PRI * HTTP/2.0\r\n"), 505 },
	{ "pri_on_http_1_1_is_an_unknown_method", BYTES("PRI * HTTP/1.1\r\n"), 501 },
	{ "pri_for_a_path_is_an_unknown_method", BYTES("PRI /"), 501 },
	{ "ssh_is_refused_at_the_end_of_its_greeting", BYTES("SSH-2.0-OpenSSH_9.2\r"), 400 },
	{ "nul_is_refused_at_once", BYTES("\0"), 400 },
	{ "high_byte_is_refused_at_once", BYTES("\x80"), 400 },
	{ "leading_space_is_refused", BYTES(" "), 400 },
	{ "leading_tab_is_refused", BYTES("\t"), 400 },
	{ "leading_bare_line_feed_is_refused", BYTES("\n"), 400 },
	{ "leading_bare_carriage_return_is_refused", BYTES("\rG"), 400 },
	{ "second_empty_line_before_the_request_is_refused", BYTES("\r\n\r"), 400 },
	{ "line_feed_behind_the_skipped_line_is_refused", BYTES("\r\n\n"), 400 },
	{ "answer_instead_of_a_request_is_refused", BYTES("HTTP/"), 400 },
	{ "json_instead_of_a_request_is_refused", BYTES("{"), 400 },
	/* The method. */
	{ "connect_is_501", BYTES("CONNECT "), 501 },
	{ "unknown_method_is_501", BYTES("QUERY "), 501 },
	{ "lower_case_method_is_501", BYTES("get "), 501 },
	{ "mixed_case_method_is_501", BYTES("Get "), 501 },
	{ "longer_known_method_is_501", BYTES("GETT "), 501 },
	{ "shorter_known_method_is_501", BYTES("GE "), 501 },
	{ "unknown_token_of_odd_bytes_is_501", BYTES("!#$%&'*+-.^_`|~ "), 501 },
	{ "endless_method_is_501", BYTES(A16 A16 "a"), 501 },
	{ "byte_that_no_token_has_in_the_method_is_400", BYTES("GE("), 400 },
	{ "tab_behind_the_method_is_400", BYTES("GET\t"), 400 },
	{ "line_end_behind_the_method_is_400", BYTES("GET\r"), 400 },
	{ "line_feed_behind_the_method_is_400", BYTES("GET\n"), 400 },
	{ "nul_in_the_method_is_400", BYTES("G\0"), 400 },
	/* The target. */
	{ "two_spaces_before_the_target_are_refused", BYTES("GET  "), 400 },
	{ "two_spaces_behind_the_target_are_refused", BYTES("GET /  "), 400 },
	{ "http_0_9_is_refused", BYTES("GET /\r"), 400 },
	{ "http_0_9_with_a_bare_line_feed_is_refused", BYTES("GET /\n"), 400 },
	{ "tab_in_the_target_is_refused", BYTES("GET /a\t"), 400 },
	{ "del_in_the_target_is_refused", BYTES("GET /a\x7f"), 400 },
	{ "nul_in_the_target_is_refused", BYTES("GET /a\0"), 400 },
	{ "high_byte_in_the_target_is_refused", BYTES("GET /a\x80"), 400 },
	{ "highest_byte_in_the_target_is_refused", BYTES("GET /a\xff"), 400 },
	{ "fragment_in_the_target_is_refused", BYTES("GET /a#"), 400 },
	{ "space_in_the_target_is_refused", BYTES("GET /a b"), 400 },
	{ "relative_target_is_refused", BYTES("GET a"), 400 },
	{ "target_of_a_query_alone_is_refused", BYTES("GET ?"), 400 },
	{ "asterisk_is_for_options_only", BYTES("GET *"), 400 },
	{ "asterisk_with_more_behind_is_refused", BYTES("OPTIONS *a"), 400 },
	{ "asterisk_without_a_version_is_refused", BYTES("OPTIONS *\r"), 400 },
	{ "other_scheme_is_refused", BYTES("GET f"), 400 },
	{ "scheme_like_http_is_refused", BYTES("GET httpx"), 400 },
	{ "scheme_like_https_is_refused", BYTES("GET httpsx"), 400 },
	{ "scheme_without_slashes_is_refused", BYTES("GET http:a"), 400 },
	{ "scheme_with_one_slash_is_refused", BYTES("GET http:/a"), 400 },
	{ "host_and_port_alone_are_refused", BYTES("GET ho"), 400 },
	{ "empty_authority_is_refused", BYTES("GET http:///"), 400 },
	{ "empty_authority_at_the_end_is_refused", BYTES("GET http:// "), 400 },
	{ "authority_of_a_port_alone_is_refused", BYTES("GET http://:80/"), 400 },
	{ "userinfo_is_refused", BYTES("GET http://u@a/"), 400 },
	{ "userinfo_with_password_is_refused", BYTES("GET http://u:p@a/"), 400 },
	{ "authority_with_a_comma_is_refused", BYTES("GET http://a,b/"), 400 },
	{ "authority_with_a_malformed_port_is_refused", BYTES("GET http://a:b/"), 400 },
	{ "authority_with_a_backslash_is_refused", BYTES("GET http://a\\b/"), 400 },
	{ "fragment_behind_an_authority_is_refused", BYTES("GET http://a#"), 400 },
	{ "control_byte_in_an_authority_is_refused", BYTES("GET http://a\x01"), 400 },
	/* The version. */
	{ "http_1_2_is_505", BYTES("GET / HTTP/1.2\r\n"), 505 },
	{ "http_1_9_is_505", BYTES("GET / HTTP/1.9\r\n"), 505 },
	{ "http_2_0_is_505", BYTES("GET / HTTP/2.0\r\n"), 505 },
	{ "http_0_9_by_name_is_505", BYTES("GET / HTTP/0.9\r\n"), 505 },
	{ "http_3_0_is_505", BYTES("GET / HTTP/3.0\r\n"), 505 },
	{ "lower_case_http_is_refused", BYTES("GET / h"), 400 },
	{ "other_protocol_is_refused", BYTES("GET / I"), 400 },
	{ "version_without_a_dot_is_refused", BYTES("GET / HTTP/11"), 400 },
	{ "version_of_one_number_is_refused", BYTES("GET / HTTP/2\r"), 400 },
	{ "long_minor_version_is_refused", BYTES("GET / HTTP/1.10"), 400 },
	{ "version_with_letters_is_refused", BYTES("GET / HTTP/1.x"), 400 },
	{ "space_in_the_version_is_refused", BYTES("GET / HTTP/ "), 400 },
	{ "trailing_space_is_refused", BYTES("GET / HTTP/1.1 "), 400 },
	{ "trailing_tab_is_refused", BYTES("GET / HTTP/1.1\t"), 400 },
	{ "request_line_with_a_bare_line_feed_is_refused", BYTES("GET / HTTP/1.1\n"), 400 },
	{ "request_line_with_a_bare_carriage_return_is_refused", BYTES("GET / HTTP/1.1\rH"), 400 },
	{ "request_line_with_two_carriage_returns_is_refused", BYTES("GET / HTTP/1.1\r\r"), 400 },
	{ "empty_version_is_refused", BYTES("GET / \r"), 400 },
	/* Lines. */
	{ "space_before_the_first_field_name_is_refused", BYTES(GET " "), 400 },
	{ "tab_before_the_first_field_name_is_refused", BYTES(GET "\t"), 400 },
	{ "folded_line_is_refused", BYTES(GET_HOST " "), 400 },
	{ "line_folded_with_a_tab_is_refused", BYTES(GET_HOST "\t"), 400 },
	{ "folded_transfer_encoding_is_refused", BYTES(POST_HOST "Transfer-Encoding:\r\n"), 400 },
	{ "space_before_the_colon_is_refused", BYTES(GET "Host "), 400 },
	{ "tab_before_the_colon_is_refused", BYTES(GET "Host\t"), 400 },
	{ "space_before_the_colon_of_transfer_encoding_is_refused",
		BYTES(POST_HOST "Transfer-Encoding "), 400 },
	{ "empty_field_name_is_refused", BYTES(GET_HOST ":"), 400 },
	{ "line_without_a_colon_is_refused", BYTES(GET_HOST "Nonsense\r"), 400 },
	{ "line_without_a_colon_and_a_bare_line_feed_is_refused", BYTES(GET_HOST "Nonsense\n"),
		400 },
	{ "field_name_with_a_slash_is_refused", BYTES(GET_HOST "A/"), 400 },
	{ "field_name_with_a_parenthesis_is_refused", BYTES(GET_HOST "A("), 400 },
	{ "field_name_with_a_quote_is_refused", BYTES(GET_HOST "\""), 400 },
	{ "field_name_with_a_high_byte_is_refused", BYTES(GET_HOST "A\xe9"), 400 },
	{ "field_name_with_nul_is_refused", BYTES(GET_HOST "A\0"), 400 },
	{ "field_name_with_del_is_refused", BYTES(GET_HOST "A\x7f"), 400 },
	{ "field_name_with_a_control_byte_is_refused", BYTES(GET_HOST "A\x0b"), 400 },
	{ "nul_in_a_value_is_refused", BYTES(GET_HOST "A: b\0"), 400 },
	{ "control_byte_in_a_value_is_refused", BYTES(GET_HOST "A: b\x01"), 400 },
	{ "escape_far_into_a_value_is_refused", BYTES(GET_HOST "A: " A64 "b\x1b"), 400 },
	{ "vertical_tab_in_a_value_is_refused", BYTES(GET_HOST "A: \x0b"), 400 },
	{ "form_feed_in_a_value_is_refused", BYTES(GET_HOST "A:\x0c"), 400 },
	{ "del_in_a_value_is_refused", BYTES(GET_HOST "A: b\x7f"), 400 },
	{ "del_far_into_a_value_is_refused", BYTES(GET_HOST "A: " A64 "\xc3\xa4\x7f"), 400 },
	{ "bare_line_feed_in_a_value_is_refused", BYTES(GET_HOST "A: b\n"), 400 },
	{ "bare_carriage_return_in_a_value_is_refused", BYTES(GET_HOST "A: b\rc"), 400 },
	{ "two_carriage_returns_behind_a_value_are_refused", BYTES(GET_HOST "A: b\r\r"), 400 },
	{ "bare_line_feed_as_the_empty_line_is_refused", BYTES(GET_HOST "\n"), 400 },
	{ "bare_carriage_return_as_the_empty_line_is_refused", BYTES(GET_HOST "\ra"), 400 },
	{ "nul_before_the_empty_line_is_refused", BYTES(GET_HOST "\0"), 400 },
	/* Host. */
	{ "no_host_on_1_1_is_refused", BYTES(GET "\r\n"), 400 },
	{ "no_host_among_others_is_refused", BYTES(GET "Hos: a\r\nX-Host: a\r\n\r\n"), 400 },
	{ "two_hosts_are_refused", BYTES(GET_HOST "Host: b\r\n"), 400 },
	{ "two_equal_hosts_are_refused", BYTES(GET_HOST "hOST: a\r\n"), 400 },
	{ "empty_and_other_host_are_refused", BYTES(GET "Host:\r\nHost: a\r\n"), 400 },
	{ "two_hosts_on_1_0_are_refused", BYTES(OLD "Host: a\r\nHost: a\r\n"), 400 },
	{ "host_with_a_space_is_refused", BYTES(GET "Host: a b\r\n"), 400 },
	{ "host_with_a_tab_is_refused", BYTES(GET "Host: a\tb\r\n"), 400 },
	{ "host_with_a_slash_is_refused", BYTES(GET "Host: a/b\r\n"), 400 },
	{ "host_that_is_a_uri_is_refused", BYTES(GET "Host: http://a\r\n"), 400 },
	{ "host_with_a_comma_is_refused", BYTES(GET "Host: a,b\r\n"), 400 },
	{ "host_with_an_at_is_refused", BYTES(GET "Host: u@a\r\n"), 400 },
	{ "host_with_a_control_byte_is_refused", BYTES(GET "Host: a\x01"), 400 },
	{ "host_with_a_backslash_is_refused", BYTES(GET "Host: a\\b\r\n"), 400 },
	{ "host_with_a_question_mark_is_refused", BYTES(GET "Host: a?b\r\n"), 400 },
	{ "host_with_a_hash_is_refused", BYTES(GET "Host: a#b\r\n"), 400 },
	{ "host_with_a_high_byte_is_refused", BYTES(GET "Host: \xc3\xa4\r\n"), 400 },
	{ "host_with_angle_brackets_is_refused", BYTES(GET "Host: <a>\r\n"), 400 },
	{ "host_with_a_bad_escape_is_refused", BYTES(GET "Host: a%2x\r\n"), 400 },
	{ "host_with_a_cut_escape_is_refused", BYTES(GET "Host: a%2\r\n"), 400 },
	{ "host_with_letters_as_port_is_refused", BYTES(GET "Host: a:b\r\n"), 400 },
	{ "host_with_two_ports_is_refused", BYTES(GET "Host: a:1:2\r\n"), 400 },
	{ "host_with_a_port_too_high_is_refused", BYTES(GET "Host: a:65536\r\n"), 400 },
	{ "host_with_a_port_that_overflows_is_refused", BYTES(GET "Host: a:4294967376\r\n"), 400 },
	{ "host_with_a_negative_port_is_refused", BYTES(GET "Host: a:-1\r\n"), 400 },
	{ "host_of_a_port_alone_is_refused", BYTES(GET "Host: :80\r\n"), 400 },
	{ "open_bracket_as_host_is_refused", BYTES(GET "Host: [::1\r\n"), 400 },
	{ "empty_brackets_as_host_are_refused", BYTES(GET "Host: []\r\n"), 400 },
	{ "name_in_brackets_as_host_is_refused", BYTES(GET "Host: [a]\r\n"), 400 },
	{ "malformed_ipv6_is_refused", BYTES(GET "Host: [1::2::3]\r\n"), 400 },
	{ "ipv6_without_brackets_is_refused", BYTES(GET "Host: ::1\r\n"), 400 },
	{ "long_ipv6_is_refused", BYTES(GET "Host: [" A64 "]\r\n"), 400 },
	{ "text_behind_an_ipv6_host_is_refused", BYTES(GET "Host: [::1]a\r\n"), 400 },
	{ "zone_in_an_ipv6_host_is_refused", BYTES(GET "Host: [fe80::1%lo]\r\n"), 400 },
	{ "future_address_without_a_dot_is_refused", BYTES(GET "Host: [v1a]\r\n"), 400 },
	{ "future_address_without_a_version_is_refused", BYTES(GET "Host: [v.a]\r\n"), 400 },
	{ "empty_future_address_is_refused", BYTES(GET "Host: [v1.]\r\n"), 400 },
	{ "future_address_with_an_at_is_refused", BYTES(GET "Host: [v1.@]\r\n"), 400 },
	/* Content-Length. */
	{ "empty_content_length_is_refused", BYTES(POST_HOST "Content-Length:\r\n"), 400 },
	{ "blank_content_length_is_refused", BYTES(POST_HOST "Content-Length: \t \r\n"), 400 },
	{ "negative_content_length_is_refused", BYTES(POST_HOST "Content-Length: -1\r\n"), 400 },
	{ "signed_content_length_is_refused", BYTES(POST_HOST "Content-Length: +1\r\n"), 400 },
	{ "hexadecimal_content_length_is_refused", BYTES(POST_HOST "Content-Length: 0x5\r\n"),
		400 },
	{ "content_length_with_letters_is_refused", BYTES(POST_HOST "Content-Length: 5a\r\n"),
		400 },
	{ "content_length_with_a_point_is_refused", BYTES(POST_HOST "Content-Length: 5.0\r\n"),
		400 },
	{ "content_length_with_a_space_inside_is_refused",
		BYTES(POST_HOST "Content-Length: 5 5\r\n"), 400 },
	{ "list_of_equal_content_lengths_is_refused", BYTES(POST_HOST "Content-Length: 5, 5\r\n"),
		400 },
	{ "list_of_other_content_lengths_is_refused", BYTES(POST_HOST "Content-Length: 5,6\r\n"),
		400 },
	{ "content_length_and_a_comma_are_refused", BYTES(POST_HOST "Content-Length: 5,\r\n"),
		400 },
	{ "quoted_content_length_is_refused", BYTES(POST_HOST "Content-Length: \"5\"\r\n"), 400 },
	{ "content_length_of_64_bits_is_refused",
		BYTES(POST_HOST "Content-Length: 9223372036854775808\r\n"), 400 },
	{ "content_length_that_wraps_is_refused",
		BYTES(POST_HOST "Content-Length: 18446744073709551621\r\n"), 400 },
	{ "very_long_content_length_is_refused",
		BYTES(POST_HOST "Content-Length: 99999999999999999999999999\r\n"), 400 },
	{ "differing_content_lengths_are_refused",
		BYTES(POST_HOST "Content-Length: 5\r\nContent-Length: 6\r\n"), 400 },
	{ "equal_content_lengths_are_refused",
		BYTES(POST_HOST "Content-Length: 5\r\ncontent-length: 5\r\n"), 400 },
	{ "two_content_lengths_of_zero_are_refused",
		BYTES(POST_HOST "Content-Length: 0\r\nContent-Length: 0\r\n"), 400 },
	{ "content_length_before_chunked_is_refused",
		BYTES(POST_HOST "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), 400 },
	{ "content_length_behind_chunked_is_refused",
		BYTES(POST_HOST "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"), 400 },
	{ "content_length_of_zero_with_chunked_is_refused",
		BYTES(POST_HOST "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n"), 400 },
	{ "content_length_with_another_coding_is_refused",
		BYTES(POST_HOST "Transfer-Encoding: gzip\r\nContent-Length: 5\r\n"), 400 },
	/* Transfer-Encoding. */
	{ "gzip_as_transfer_encoding_is_501", BYTES(POST_HOST "Transfer-Encoding: gzip\r\n\r\n"),
		501 },
	{ "identity_as_transfer_encoding_is_501",
		BYTES(POST_HOST "Transfer-Encoding: identity\r\n\r\n"), 501 },
	{ "gzip_and_chunked_is_501", BYTES(POST_HOST "Transfer-Encoding: gzip, chunked\r\n\r\n"),
		501 },
	{ "gzip_and_chunked_in_two_lines_is_501",
		BYTES(POST_HOST "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"),
		501 },
	{ "missing_host_comes_before_another_coding",
		BYTES("POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n"), 400 },
	{ "chunked_and_identity_is_refused",
		BYTES(POST_HOST "Transfer-Encoding: chunked, identity\r\n"), 400 },
	{ "chunked_twice_is_refused", BYTES(POST_HOST "Transfer-Encoding: chunked, chunked\r\n"),
		400 },
	{ "chunked_in_two_lines_is_refused",
		BYTES(POST_HOST "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
		400 },
	{ "chunked_before_gzip_in_two_lines_is_refused",
		BYTES(POST_HOST "Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n"), 400 },
	{ "xchunked_is_refused", BYTES(POST_HOST "Transfer-Encoding: xchunked\r\n"), 400 },
	{ "chunkedx_is_refused", BYTES(POST_HOST "Transfer-Encoding: chunkedx\r\n"), 400 },
	{ "chunk_is_refused", BYTES(POST_HOST "Transfer-Encoding: Chunk\r\n"), 400 },
	{ "chunked_with_a_parameter_is_refused",
		BYTES(POST_HOST "Transfer-Encoding: chunked;q=1\r\n"), 400 },
	{ "chunked_and_a_comma_is_refused", BYTES(POST_HOST "Transfer-Encoding: chunked,\r\n"),
		400 },
	{ "comma_and_chunked_is_refused", BYTES(POST_HOST "Transfer-Encoding: ,chunked\r\n"), 400 },
	{ "quoted_chunked_is_refused", BYTES(POST_HOST "Transfer-Encoding: \"chunked\"\r\n"), 400 },
	{ "bracketed_chunked_is_refused", BYTES(POST_HOST "Transfer-Encoding: [chunked]\r\n"),
		400 },
	{ "chunked_behind_a_vertical_tab_is_refused", BYTES(POST_HOST "Transfer-Encoding: \x0b"),
		400 },
	{ "chunked_before_a_high_byte_is_refused",
		BYTES(POST_HOST "Transfer-Encoding: chunked\xa0\r\n"), 400 },
	{ "chunked_with_a_space_inside_is_refused",
		BYTES(POST_HOST "Transfer-Encoding: chun ked\r\n"), 400 },
	{ "chunked_behind_a_word_is_refused", BYTES(POST_HOST "Transfer-Encoding: x chunked\r\n"),
		400 },
	{ "empty_transfer_encoding_is_refused", BYTES(POST_HOST "Transfer-Encoding:\r\n"), 400 },
	{ "transfer_encoding_of_a_comma_is_refused", BYTES(POST_HOST "Transfer-Encoding: ,\r\n"),
		400 },
	{ "chunked_on_1_0_is_refused", BYTES("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n"),
		400 },
	{ "other_coding_on_1_0_is_refused", BYTES("POST / HTTP/1.0\r\nTransfer-Encoding: gzip\r\n"),
		400 },
	/* Expect. */
	{ "other_expectation_is_417", BYTES(POST_HOST "Expect: payment\r\n\r\n"), 417 },
	{ "other_expectation_beside_100_continue_is_417",
		BYTES(POST_HOST "Expect: 100-continue, payment\r\n\r\n"), 417 },
	{ "other_expectation_in_another_line_is_417",
		BYTES(POST_HOST "Expect: 100-continue\r\nExpect: 200-ok\r\n\r\n"), 417 },
	{ "100_continue_with_more_behind_is_417", BYTES(POST_HOST "Expect: 100-continues\r\n\r\n"),
		417 },
	{ "cut_100_continue_is_417", BYTES(POST_HOST "Expect: 100-\r\n\r\n"), 417 },
	{ "100_continue_with_a_parameter_is_417",
		BYTES(POST_HOST "Expect: 100-continue;a=b\r\n\r\n"), 417 },
	{ "empty_expectation_is_417", BYTES(POST_HOST "Expect:\r\n\r\n"), 417 },
	{ "other_expectation_on_1_0_is_417", BYTES(OLD "Expect: payment\r\n\r\n"), 417 },
	{ "missing_host_comes_before_the_expectation", BYTES(GET "Expect: payment\r\n\r\n"), 400 },
	/* Good by the letter, but http-parser reads them in its own way. */
	{ "tab_behind_a_content_length_is_refused", BYTES(POST_HOST "Content-Length: 5\t\r\n\r\n"),
		400 },
	{ "tab_behind_chunked_is_refused", BYTES(POST_HOST "Transfer-Encoding: chunked\t\r\n\r\n"),
		400 },
	{ "tab_behind_close_is_refused", BYTES(GET_HOST "Connection: close\t\r\n\r\n"), 400 },
	/* Length: HEAD_MAX is 1024. */
	{ "long_target_is_414", BYTES("GET /" A256 A256 A256 A64 A64 A64 A16 A16 A16 "aaaaaaaaaaa"),
		414 },
	{ "long_authority_is_414",
		BYTES("GET http://" A256 A256 A256 A64 A64 A64 A16 A16 A16 "aaaaa"), 414 },
	{ "long_target_behind_a_skipped_line_is_414",
		BYTES("\r\nGET /" A256 A256 A256 A64 A64 A64 A16 A16 A16 "aaaaaaaaaaa"), 414 },
	{ "target_that_leaves_no_room_for_the_version_is_431",
		BYTES("GET /" A256 A256 A256 A64 A64 A64 A16 A16 A16 "aaaa HTTP/1"), 431 },
	{ "long_value_is_431", BYTES(GET_HOST "A: " A256 A256 A256 A64 A64 A64 A16 A16 "aaaa"),
		431 },
	{ "long_name_is_431", BYTES(GET_HOST A256 A256 A256 A64 A64 A64 A16 A16 "aaaaaaa"), 431 },
};

struct accepted {
	const char *name;
	const char *bytes;
	size_t len;
	const char *method, *target;
	struct http_head head; /* start, http_minor and what follows */
};

#define KEEP .keep_alive = true
#define V1 .http_minor = 1
#define LENGTH(n) .body = HTTP_BODY_LENGTH, .body_len = (n)
#define CHUNKED .body = HTTP_BODY_CHUNKED
#define CHUNKED_LINE "Transfer-Encoding: chunked\r\n"

static const struct accepted accepted[] = {
	{ "plain_get", BYTES(GET_HOST "\r\n"), "GET", "/", { V1, KEEP } },
	{ "get_as_a_load_generator_sends_it",
		BYTES("GET / HTTP/1.1\r\nHost: 127.0.0.1:3000\r\n\r\n"), "GET", "/", { V1, KEEP } },
	{ "single_empty_line_before_the_request_is_skipped", BYTES("\r\n" GET_HOST "\r\n"), "GET",
		"/", { V1, KEEP, .start = 2 } },
	{ "options_with_an_asterisk", BYTES("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"), "OPTIONS",
		"*", { V1, KEEP } },
	{ "longest_known_method", BYTES("UNSUBSCRIBE / HTTP/1.1\r\nHost: a\r\n\r\n"), "UNSUBSCRIBE",
		"/", { V1, KEEP } },
	{ "method_with_a_hyphen", BYTES("M-SEARCH / HTTP/1.1\r\nHost: a\r\n\r\n"), "M-SEARCH", "/",
		{ V1, KEEP } },
	{ "patch", BYTES("PATCH / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n"), "PATCH", "/",
		{ V1, KEEP, LENGTH(3) } },
	{ "every_byte_that_a_target_may_have",
		BYTES("GET /!\"$%&'()*+,-./0123456789:;<=>?@AZ[\\]^_`az{|}~ HTTP/1.1\r\nHost: "
		      "a\r\n\r\n"),
		"GET", "/!\"$%&'()*+,-./0123456789:;<=>?@AZ[\\]^_`az{|}~", { V1, KEEP } },
	{ "http_uri_as_target", BYTES("GET http://a/b?c HTTP/1.1\r\nHost: a\r\n\r\n"), "GET",
		"http://a/b?c", { V1, KEEP } },
	{ "https_uri_as_target", BYTES("GET HttpS://a:443/ HTTP/1.1\r\nHost: a\r\n\r\n"), "GET",
		"HttpS://a:443/", { V1, KEEP } },
	{ "uri_without_a_path_as_target", BYTES("GET http://a HTTP/1.1\r\nHost: a\r\n\r\n"), "GET",
		"http://a", { V1, KEEP } },
	{ "uri_with_a_query_and_no_path_as_target",
		BYTES("GET http://a?b HTTP/1.1\r\nHost: a\r\n\r\n"), "GET", "http://a?b",
		{ V1, KEEP } },
	{ "uri_with_an_ipv6_host_as_target",
		BYTES("GET http://[::1]:8/ HTTP/1.1\r\nHost: a\r\n\r\n"), "GET", "http://[::1]:8/",
		{ V1, KEEP } },
	{ "every_byte_that_a_field_name_may_have",
		BYTES(GET_HOST "!#$%&'*+-.0123456789AZ^_`az|~: x\r\n\r\n"), "GET", "/",
		{ V1, KEEP } },
	{ "tab_and_high_bytes_in_a_value", BYTES(GET_HOST "A: \t\x80\xff b\t c \r\n\r\n"), "GET",
		"/", { V1, KEEP } },
	{ "empty_values", BYTES(GET_HOST "A:\r\nB: \r\nC:\t\r\n\r\n"), "GET", "/", { V1, KEEP } },
	{ "value_without_a_space_before", BYTES("GET / HTTP/1.1\r\nHost:a\r\n\r\n"), "GET", "/",
		{ V1, KEEP } },
	/* Host. */
	{ "empty_host", BYTES(GET "Host:\r\n\r\n"), "GET", "/", { V1, KEEP } },
	{ "host_with_space_around", BYTES(GET "Host: \ta \t\r\n\r\n"), "GET", "/", { V1, KEEP } },
	{ "host_with_a_port", BYTES(GET "Host: a.example:65535\r\n\r\n"), "GET", "/",
		{ V1, KEEP } },
	{ "host_with_an_empty_port", BYTES(GET "Host: a:\r\n\r\n"), "GET", "/", { V1, KEEP } },
	{ "host_with_an_underscore", BYTES(GET "Host: a_b-c.d~e\r\n\r\n"), "GET", "/",
		{ V1, KEEP } },
	{ "host_with_an_escape", BYTES(GET "Host: %C3%a4.example\r\n\r\n"), "GET", "/",
		{ V1, KEEP } },
	{ "host_with_sub_delimiters", BYTES(GET "Host: a!$&'()*+;=b\r\n\r\n"), "GET", "/",
		{ V1, KEEP } },
	{ "ipv6_host", BYTES(GET "Host: [2001:db8::1]\r\n\r\n"), "GET", "/", { V1, KEEP } },
	{ "ipv6_host_with_a_port", BYTES(GET "Host: [::ffff:1.2.3.4]:80\r\n\r\n"), "GET", "/",
		{ V1, KEEP } },
	{ "future_address_as_host", BYTES(GET "Host: [v1F.a:b]:80\r\n\r\n"), "GET", "/",
		{ V1, KEEP } },
	{ "host_behind_other_fields", BYTES(GET "A: b\r\nhost: a\r\n\r\n"), "GET", "/",
		{ V1, KEEP } },
	/* Bodies. */
	{ "length", BYTES(POST_HOST "Content-Length: 5\r\n\r\nhello"), "POST", "/",
		{ V1, KEEP, LENGTH(5) } },
	{ "length_with_space_around", BYTES(POST_HOST "Content-Length:  5 \r\n\r\n"), "POST", "/",
		{ V1, KEEP, LENGTH(5) } },
	{ "length_with_leading_zeros", BYTES(POST_HOST "content-length: 0005\r\n\r\n"), "POST", "/",
		{ V1, KEEP, LENGTH(5) } },
	{ "length_of_zero_is_no_body", BYTES(POST_HOST "Content-Length: 0\r\n\r\n"), "POST", "/",
		{ V1, KEEP } },
	{ "length_of_63_bits", BYTES(POST_HOST "Content-Length: 9223372036854775807\r\n\r\n"),
		"POST", "/", { V1, KEEP, LENGTH(INT64_MAX) } },
	{ "length_on_1_0", BYTES("POST / HTTP/1.0\r\nContent-Length: 5\r\n\r\n"), "POST", "/",
		{ LENGTH(5) } },
	{ "length_on_get", BYTES(GET_HOST "Content-Length: 5\r\n\r\n"), "GET", "/",
		{ V1, KEEP, LENGTH(5) } },
	{ "chunked", BYTES(POST_HOST CHUNKED_LINE "\r\n"), "POST", "/", { V1, KEEP, CHUNKED } },
	{ "chunked_in_any_case", BYTES(POST_HOST "TRANSFER-ENCODING: CHUNKED\r\n\r\n"), "POST", "/",
		{ V1, KEEP, CHUNKED } },
	{ "chunked_with_space_around", BYTES(POST_HOST "Transfer-Encoding:  chunked \r\n\r\n"),
		"POST", "/", { V1, KEEP, CHUNKED } },
	/* Connection. */
	{ "close", BYTES(GET_HOST "Connection: close\r\n\r\n"), "GET", "/", { V1 } },
	{ "close_in_any_case", BYTES(GET_HOST "connection: CLOSE\r\n\r\n"), "GET", "/", { V1 } },
	{ "close_in_a_list", BYTES(GET_HOST "Connection: TE, close\r\n\r\n"), "GET", "/", { V1 } },
	{ "close_in_another_line", BYTES(GET_HOST "Connection: TE\r\nConnection: close\r\n\r\n"),
		"GET", "/", { V1 } },
	{ "close_wins_over_keep_alive", BYTES(GET_HOST "Connection: keep-alive, close\r\n\r\n"),
		"GET", "/", { V1 } },
	{ "other_words_with_close_in_them_do_not_close",
		BYTES(GET_HOST "Connection: closed, xclose, close-not\r\n\r\n"), "GET", "/",
		{ V1, KEEP } },
	{ "http_1_0_closes", BYTES(OLD "\r\n"), "GET", "/", { .http_minor = 0 } },
	{ "http_1_0_with_keep_alive", BYTES(OLD "Connection: Keep-Alive\r\n\r\n"), "GET", "/",
		{ KEEP } },
	{ "close_wins_on_1_0", BYTES(OLD "Connection: keep-alive\r\nConnection: close\r\n\r\n"),
		"GET", "/", { .http_minor = 0 } },
	{ "proxy_connection_does_not_keep_alive", BYTES(OLD "Proxy-Connection: keep-alive\r\n\r\n"),
		"GET", "/", { .http_minor = 0 } },
	{ "proxy_connection_does_not_close", BYTES(GET_HOST "Proxy-Connection: close\r\n\r\n"),
		"GET", "/", { V1, KEEP } },
	/* Expect. */
	{ "expect_with_a_length",
		BYTES(POST_HOST "Expect: 100-continue\r\nContent-Length: 5\r\n\r\n"), "POST", "/",
		{ V1, KEEP, LENGTH(5), .expect_continue = true } },
	{ "expect_with_chunked", BYTES(POST_HOST CHUNKED_LINE "expect: 100-Continue\r\n\r\n"),
		"POST", "/", { V1, KEEP, CHUNKED, .expect_continue = true } },
	{ "expect_several_times",
		BYTES(POST_HOST "Expect: 100-continue\r\nContent-Length: 5\r\nExpect: "
				"100-continue\r\n\r\n"),
		"POST", "/", { V1, KEEP, LENGTH(5), .expect_continue = true } },
	{ "expect_without_a_body_is_ignored", BYTES(GET_HOST "Expect: 100-continue\r\n\r\n"), "GET",
		"/", { V1, KEEP } },
	{ "expect_with_a_length_of_zero_is_ignored",
		BYTES(POST_HOST "Expect: 100-continue\r\nContent-Length: 0\r\n\r\n"), "POST", "/",
		{ V1, KEEP } },
	{ "expect_on_1_0_is_ignored",
		BYTES("POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"),
		"POST", "/", { LENGTH(5) } },
	/* Upgrade. */
	{ "websocket",
		BYTES(GET_HOST "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n"),
		"GET", "/", { V1, KEEP, .upgrade = true } },
	{ "upgrade_without_connection_is_ignored", BYTES(GET_HOST "Upgrade: websocket\r\n\r\n"),
		"GET", "/", { V1, KEEP } },
	{ "connection_without_upgrade_is_ignored", BYTES(GET_HOST "Connection: upgrade\r\n\r\n"),
		"GET", "/", { V1, KEEP } },
	{ "empty_upgrade_is_ignored", BYTES(GET_HOST "Connection: upgrade\r\nUpgrade:\r\n\r\n"),
		"GET", "/", { V1, KEEP } },
	{ "upgrade_on_1_0_is_ignored",
		BYTES(OLD "Connection: upgrade, keep-alive\r\nUpgrade: websocket\r\n\r\n"), "GET",
		"/", { KEEP } },
	{ "h2c_is_no_upgrade",
		BYTES(GET_HOST "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
			       "HTTP2-Settings: AAMAAABk\r\n\r\n"),
		"GET", "/", { V1, KEEP, .h2c = true } },
	{ "h2c_beside_websocket",
		BYTES(GET_HOST "Connection: Upgrade\r\nUpgrade: H2C, websocket\r\n\r\n"), "GET",
		"/", { V1, KEEP, .h2c = true, .upgrade = true } },
	{ "http2_settings_alone", BYTES(GET_HOST "http2-settings: A\r\n\r\n"), "GET", "/",
		{ V1, KEEP, .h2c = true } },
	/* Length: HEAD_MAX is 1024. */
	{ "head_as_long_as_allowed",
		BYTES(GET_HOST "A: " A256 A256 A256 A64 A64 A64 A16 A16 "\r\n\r\n"), "GET", "/",
		{ V1, KEEP } },
	{ "head_as_long_as_allowed_behind_a_skipped_line",
		BYTES("\r\n" GET_HOST "A: " A256 A256 A256 A64 A64 A64 A16 A16 "\r\n\r\n"), "GET",
		"/", { V1, KEEP, .start = 2 } },
};

/* Gives the first `len` bytes to the scanner, from a block that ends there and is freed again. */
static enum http_scan_result scan_some(struct http_scan *scan, const char *bytes, size_t len)
{
	char *block = malloc(len > 0 ? len : 1);
	enum http_scan_result result;

	assert_non_null(block);
	memcpy(block, bytes, len);
	result = http_scan(scan, block, len);
	free(block);
	return result;
}

/* In one piece, or cut before `cut`, or, with a cut of 0, after every byte. */
static enum http_scan_result scan_cut(
	struct http_scan *scan, const char *bytes, size_t len, size_t cut, uint32_t head_max)
{
	enum http_scan_result result = HTTP_MORE;

	http_scan_init(scan, head_max);
	if (cut > 0) {
		result = scan_some(scan, bytes, cut);
		return result == HTTP_MORE ? scan_some(scan, bytes, len) : result;
	}
	for (size_t i = 0; i <= len && result == HTTP_MORE; i++)
		result = scan_some(scan, bytes, i);
	return result;
}

static void expect_refusal(const struct refusal *c, size_t cut)
{
	struct http_scan scan;

	assert_int_equal(scan_cut(&scan, c->bytes, c->len, cut, HEAD_MAX), HTTP_REFUSED);
	assert_int_equal(scan.status, c->status);
	assert_int_equal(scan.at, c->len);
	assert_true(scan.reason[0] != '\0');
	assert_int_equal(scan_some(&scan, c->bytes, c->len), HTTP_REFUSED);
}

/* What comes behind the refused byte changes nothing. */
static void expect_refusal_before_more(const struct refusal *c)
{
	char data[2 * HEAD_MAX];
	struct http_scan scan;

	memset(data, 'a', sizeof(data));
	memcpy(data, c->bytes, c->len);
	http_scan_init(&scan, HEAD_MAX);
	assert_int_equal(http_scan(&scan, data, sizeof(data)), HTTP_REFUSED);
	assert_int_equal(scan.status, c->status);
	assert_int_equal(scan.at, c->len);
}

static void run_refusal(void **state)
{
	const struct refusal *c = *state;
	struct http_scan scan;

	/* Not before its last byte. */
	assert_int_equal(scan_cut(&scan, c->bytes, c->len - 1, c->len - 1, HEAD_MAX), HTTP_MORE);
	for (size_t cut = 0; cut <= c->len; cut++)
		expect_refusal(c, cut);
	expect_refusal_before_more(c);
}

static void expect_accepted(const struct accepted *c, size_t len, size_t cut, uint32_t head_max)
{
	const struct http_head *want = &c->head;
	struct http_scan scan;

	assert_int_equal(scan_cut(&scan, c->bytes, len, cut, head_max), HTTP_WHOLE);
	assert_int_equal(scan.head.start, want->start);
	assert_memory_equal(c->bytes + scan.head.start + scan.head.len - 4, "\r\n\r\n", 4);
	assert_int_equal(scan.at, scan.head.start + scan.head.len);
	assert_int_equal(scan.head.method_len, strlen(c->method));
	assert_memory_equal(c->bytes + scan.head.start, c->method, strlen(c->method));
	assert_int_equal(scan.head.target_len, strlen(c->target));
	assert_memory_equal(c->bytes + scan.head.start + scan.head.method_len + 1, c->target,
		strlen(c->target));
	assert_int_equal(scan.head.http_minor, want->http_minor);
	assert_int_equal(scan.head.keep_alive, want->keep_alive);
	assert_int_equal(scan.head.expect_continue, want->expect_continue);
	assert_int_equal(scan.head.upgrade, want->upgrade);
	assert_int_equal(scan.head.h2c, want->h2c);
	assert_int_equal(scan.head.body, want->body);
	assert_int_equal(scan.head.body_len, want->body_len);
}

static void run_accepted(void **state)
{
	const struct accepted *c = *state;
	struct http_scan scan;

	for (size_t cut = 0; cut <= c->len; cut++)
		expect_accepted(c, c->len, cut, HEAD_MAX);
	assert_int_equal(scan_cut(&scan, c->bytes, c->len, 1, HEAD_MAX), HTTP_WHOLE);
	expect_accepted(c, c->len, c->len, scan.head.len);
	/* One byte too few. */
	assert_int_equal(scan_cut(&scan, c->bytes, c->len, 1, scan.head.len - 1), HTTP_REFUSED);
	assert_int_equal(scan.status, 431);
}

struct h2c {
	const char *name, *before, *after;
};

static const struct h2c h2cs[] = {
	{ "h2c_goes_as_curl_sends_it",
		GET_HOST
		"User-Agent: curl\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
		"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\nA: b\r\n\r\n",
		GET_HOST "User-Agent: curl\r\nA: b\r\n\r\n" },
	{ "h2c_goes_and_other_options_stay",
		POST_HOST "Upgrade: h2c\r\nHTTP2-Settings: A\r\n"
			  "Connection: keep-alive, Upgrade , HTTP2-Settings,TE\r\n\r\n",
		POST_HOST "Connection: keep-alive,TE\r\n\r\n" },
	{ "first_option_goes_and_the_next_stays",
		GET_HOST "Connection:Upgrade,a,b,c,d,e\r\nUpgrade:h2c\r\n\r\n",
		GET_HOST "Connection:a,b,c,d,e\r\n\r\n" },
	{ "last_option_goes_and_the_others_stay",
		GET_HOST "Connection:a,b,c,d,e,Upgrade\r\nUpgrade:h2c\r\n\r\n",
		GET_HOST "Connection:a,b,c,d,e\r\n\r\n" },
	{ "websocket_stays_behind_h2c",
		GET_HOST "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c, websocket\r\n\r\n",
		GET_HOST "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n" },
	{ "websocket_stays_before_h2c",
		GET_HOST "Connection: Upgrade\r\nUpgrade: websocket,h2c\r\n\r\n",
		GET_HOST "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n" },
	{ "websocket_stays_in_another_line",
		GET_HOST "Upgrade: websocket\r\nConnection: upgrade\r\nupgrade: H2C\r\n\r\n",
		GET_HOST "Upgrade: websocket\r\nConnection: upgrade\r\n\r\n" },
	{ "every_http2_settings_goes",
		GET_HOST
		"HTTP2-Settings: A\r\nhttp2-settings: B\r\nConnection: http2-settings\r\n\r\n",
		GET_HOST "\r\n" },
	{ "connection_in_several_lines_is_cleaned_in_each",
		GET_HOST "Connection: Upgrade\r\nConnection: close\r\nUpgrade: h2c\r\n"
			 "Connection: HTTP2-Settings\r\n\r\n",
		GET_HOST "Connection: close\r\n\r\n" },
	{ "skipped_line_before_the_request_stays", "\r\n" GET_HOST "Upgrade: h2c\r\n\r\n",
		"\r\n" GET_HOST "\r\n" },
};

static void run_h2c(void **state)
{
	const struct h2c *c = *state;
	static const char body[] = "Upgrade: h2c\r\nbody";
	size_t before = strlen(c->before), after = strlen(c->after);
	struct http_scan scan, again;
	char data[1024];

	memcpy(data, c->before, before);
	memcpy(data + before, body, sizeof(body));
	http_scan_init(&scan, HEAD_MAX);
	assert_int_equal(http_scan(&scan, data, before), HTTP_WHOLE);
	assert_true(scan.head.h2c);
	assert_int_equal(http_head_remove_h2c(data, &scan.head), before - after);
	assert_int_equal(scan.head.start + scan.head.len, after);
	assert_memory_equal(data, c->after, after);
	assert_memory_equal(data + before, body, sizeof(body));
	assert_false(scan.head.h2c);
	http_scan_init(&again, HEAD_MAX);
	assert_int_equal(http_scan(&again, data, after), HTTP_WHOLE);
	assert_false(again.head.h2c);
	assert_int_equal(again.head.upgrade, scan.head.upgrade);
	assert_int_equal(again.head.keep_alive, scan.head.keep_alive);
}

static void head_may_be_longer_than_the_default_of_http_parser(void **state)
{
	static char data[128 * 1024];
	static const char head[] = GET_HOST "A: ";
	struct http_scan scan;

	(void)state;
	memset(data, 'a', sizeof(data));
	memcpy(data, head, sizeof(head) - 1);
	memcpy(data + sizeof(data) - 4, "\r\n\r\n", 4);
	http_scan_init(&scan, sizeof(data));
	assert_int_equal(http_scan(&scan, data, sizeof(data)), HTTP_WHOLE);
	assert_int_equal(scan.head.len, sizeof(data));
}

static void bytes_behind_the_head_are_not_looked_at(void **state)
{
	static const char data[] = GET_HOST "\r\n\x16\0\n\r";
	struct http_scan scan;

	(void)state;
	http_scan_init(&scan, HEAD_MAX);
	assert_int_equal(http_scan(&scan, data, sizeof(data) - 1), HTTP_WHOLE);
	assert_int_equal(scan.head.len, sizeof(GET_HOST "\r\n") - 1);
	assert_int_equal(scan.at, scan.head.len);
	assert_int_equal(http_scan(&scan, data, sizeof(data) - 1), HTTP_WHOLE);
}

static void every_method_of_http_parser_but_connect_is_known(void **state)
{
	static const char *const methods[] = { "DELETE", "GET", "HEAD", "POST", "PUT", "OPTIONS",
		"TRACE", "COPY", "LOCK", "MKCOL", "MOVE", "PROPFIND", "PROPPATCH", "SEARCH",
		"UNLOCK", "BIND", "REBIND", "UNBIND", "ACL", "REPORT", "MKACTIVITY", "CHECKOUT",
		"MERGE", "M-SEARCH", "NOTIFY", "SUBSCRIBE", "UNSUBSCRIBE", "PATCH", "PURGE",
		"MKCALENDAR", "LINK", "UNLINK", "SOURCE" };

	(void)state;
	for (size_t i = 0; i < N(methods); i++) {
		char data[64];
		struct http_scan scan;

		strcpy(data, methods[i]);
		strcat(data, " / HTTP/1.1\r\nHost: a\r\n\r\n");
		http_scan_init(&scan, HEAD_MAX);
		assert_int_equal(http_scan(&scan, data, strlen(data)), HTTP_WHOLE);
		assert_int_equal(scan.head.method_len, strlen(methods[i]));
	}
}

static void expect_field(const struct http_field *field, const char *name, const char *value)
{
	assert_int_equal(field->name_len, strlen(name));
	assert_memory_equal(field->name, name, strlen(name));
	assert_int_equal(field->value_len, strlen(value));
	assert_memory_equal(field->value, value, strlen(value));
}

static void fields_are_walked_in_order(void **state)
{
	static const char head[] = GET "Host: a:1\r\nEmpty:\r\nBlank: \t\r\nA:b: c \r\n\r\n";
	struct http_field field;
	uint32_t at = 0, len = sizeof(head) - 1;

	(void)state;
	assert_true(http_next_field(head, len, &at, &field));
	expect_field(&field, "Host", "a:1");
	assert_true(http_next_field(head, len, &at, &field));
	expect_field(&field, "Empty", "");
	assert_true(http_next_field(head, len, &at, &field));
	expect_field(&field, "Blank", "");
	assert_true(http_next_field(head, len, &at, &field));
	expect_field(&field, "A", "b: c");
	assert_false(http_next_field(head, len, &at, &field));
	assert_false(http_next_field(head, len, &at, &field));
}

static void head_without_fields_has_none(void **state)
{
	static const char head[] = OLD "\r\n";
	struct http_field field;
	uint32_t at = 0;

	(void)state;
	assert_false(http_next_field(head, sizeof(head) - 1, &at, &field));
}

static bool list_has(const char *value, const char *token)
{
	return http_list_has(value, strlen(value), token);
}

static void token_is_found_in_a_list(void **state)
{
	(void)state;
	assert_true(list_has("close", "close"));
	assert_true(list_has("a, CLOSE\t,b", "close"));
	assert_true(list_has(",, close", "Close"));
	assert_false(list_has("closed", "close"));
	assert_false(list_has("clos", "close"));
	assert_false(list_has("a close", "close"));
	assert_false(list_has("", "close"));
	assert_false(list_has("a,,b", ""));
}

static void tokens_and_values_are_told_apart(void **state)
{
	(void)state;
	assert_true(http_is_token("X-a_b!", 6));
	assert_false(http_is_token("", 0));
	assert_false(http_is_token("a b", 3));
	assert_false(http_is_token("a:", 2));
	assert_false(http_is_token("\xe9", 1));
	assert_true(http_is_value("", 0));
	assert_true(http_is_value("a\tb \xe9", 5));
	assert_false(http_is_value("a\r\n", 3));
	assert_false(http_is_value("a\0", 2));
	assert_false(http_is_value("\x7f", 1));
}

static void reason_is_never_null(void **state)
{
	(void)state;
	assert_string_equal(http_reason(200), "OK");
	assert_string_equal(http_reason(404), "Not Found");
	assert_string_equal(http_reason(417), "Expectation Failed");
	assert_string_equal(http_reason(431), "Request Header Fields Too Large");
	assert_string_equal(http_reason(505), "HTTP Version Not Supported");
	assert_string_equal(http_reason(299), "Unknown");
	assert_string_equal(http_reason(0), "Unknown");
}

static const struct CMUnitTest others[] = {
	cmocka_unit_test(head_may_be_longer_than_the_default_of_http_parser),
	cmocka_unit_test(bytes_behind_the_head_are_not_looked_at),
	cmocka_unit_test(every_method_of_http_parser_but_connect_is_known),
	cmocka_unit_test(fields_are_walked_in_order),
	cmocka_unit_test(head_without_fields_has_none),
	cmocka_unit_test(token_is_found_in_a_list),
	cmocka_unit_test(tokens_and_values_are_told_apart),
	cmocka_unit_test(reason_is_never_null),
};

static struct CMUnitTest row_test(const char *name, CMUnitTestFunction run, const void *row)
{
	struct CMUnitTest test = {
		.name = name, .test_func = run, .initial_state = (void *)(uintptr_t)row
	};

	return test;
}

int main(void)
{
	static struct CMUnitTest tests[N(refusals) + N(accepted) + N(h2cs) + N(others)];
	size_t n = 0;

	for (size_t i = 0; i < N(refusals); i++)
		tests[n++] = row_test(refusals[i].name, run_refusal, &refusals[i]);
	for (size_t i = 0; i < N(accepted); i++)
		tests[n++] = row_test(accepted[i].name, run_accepted, &accepted[i]);
	for (size_t i = 0; i < N(h2cs); i++)
		tests[n++] = row_test(h2cs[i].name, run_h2c, &h2cs[i]);
	memcpy(tests + n, others, sizeof(others));
	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
