/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Channel: one end of a channel to the master, with what waits to be sent on it.
 *
 * Owns its descriptor, its page and the table of what is lent. Loop thread only. The control
 * channel is one too, without a page, and read by up.c.
 */
#include "worker/up.h"

/* Takes fd. */
void channel_init(struct channel *channel, struct up_worker *worker, int fd);
/* Makes it a lending channel and starts it. Takes *take_page_fd. Returns 0 or -errno. */
int channel_open(struct channel *channel, int *take_page_fd, uint32_t n_slots);
void channel_fini(struct channel *channel);
/* Sends what has been posted, and acknowledges, as far as the channel has room. */
void channel_flush(struct channel *channel);
/* Whether everything posted has been sent. */
bool channel_is_empty(const struct channel *channel);
