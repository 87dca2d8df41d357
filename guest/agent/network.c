/* The machine's card: hardware address, MTU, addresses, routes and neighbours, of both families, by rtnetlink(7). */
#include <errno.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent.h"

enum { MAX_ROOM = 256 };

struct message {
	struct nlmsghdr head;
	uint8_t room[MAX_ROOM];
};

/* A machine has as many cards as its template: as in casemate.isolation.microvm.argv. */
enum { MOST_CARDS = 4 };
static const char card[] = "eth0";

/* The IPv4 address that was set last, for network_forget. */
static uint8_t last[4], last_prefix;
static size_t last_bytes;

static int talk(int fd, struct message *message)
{
	struct {
		struct nlmsghdr head;
		struct nlmsgerr error;
		uint8_t rest[256];
	} answer;

	message->head.nlmsg_flags |= NLM_F_REQUEST | NLM_F_ACK;
	if (send(fd, message, message->head.nlmsg_len, 0) < 0)
		return errno;
	if (recv(fd, &answer, sizeof answer, 0) < (ssize_t)sizeof answer.head)
		return EIO;
	return answer.head.nlmsg_type == NLMSG_ERROR ? -answer.error.error : EIO;
}

static void begin(struct message *m, uint16_t type, uint16_t flags, const void *body, size_t length)
{
	memset(m, 0, sizeof *m);
	m->head.nlmsg_type = type;
	m->head.nlmsg_flags = flags;
	m->head.nlmsg_len = (uint32_t)NLMSG_LENGTH(length);
	memcpy(m->room, body, length);
}

static void attribute(struct message *m, uint16_t type, const void *data, size_t length)
{
	struct rtattr *one = (struct rtattr *)((char *)m + NLMSG_ALIGN(m->head.nlmsg_len));

	one->rta_type = type;
	one->rta_len = (uint16_t)RTA_LENGTH(length);
	memcpy(RTA_DATA(one), data, length);
	m->head.nlmsg_len = NLMSG_ALIGN(m->head.nlmsg_len) + RTA_ALIGN(one->rta_len);
}

static int set_down(int fd, int index)
{
	struct ifinfomsg link = { .ifi_index = index, .ifi_change = IFF_UP };
	struct message m;

	begin(&m, RTM_NEWLINK, 0, &link, sizeof link);
	return talk(fd, &m);
}

static int set_link(int fd, int index, const uint8_t *mac, uint32_t mtu)
{
	struct ifinfomsg link = { .ifi_index = index, .ifi_flags = IFF_UP, .ifi_change = IFF_UP };
	struct message m;

	begin(&m, RTM_NEWLINK, 0, &link, sizeof link);
	if (mac)
		attribute(&m, IFLA_ADDRESS, mac, 6);
	if (mtu)
		attribute(&m, IFLA_MTU, &mtu, 4);
	return talk(fd, &m);
}

/* The size of an address in bytes by what a field holds of it, or 0. */
static size_t address_bytes(size_t length)
{
	return length == 4 || length == 16 ? length : 0;
}

static uint8_t family_of(size_t bytes)
{
	return bytes == 4 ? AF_INET : AF_INET6;
}

/* The address, then its prefix length. */
static int add_address(int fd, int index, const struct wire_field *f)
{
	size_t bytes = f->length ? address_bytes(f->length - 1) : 0;
	struct message m;

	if (!bytes || f->bytes[bytes] > 8 * bytes)
		return EINVAL;
	/* Nobody else has it: the host's side is the only neighbour, and it chose the address. */
	struct ifaddrmsg address = { .ifa_family = family_of(bytes), .ifa_prefixlen = f->bytes[bytes],
		.ifa_flags = bytes == 16 ? IFA_F_NODAD : 0, .ifa_index = (unsigned)index };
	begin(&m, RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &address, sizeof address);
	attribute(&m, IFA_LOCAL, f->bytes, bytes);
	attribute(&m, IFA_ADDRESS, f->bytes, bytes);
	last_bytes = bytes == 4 ? bytes : 0;
	memcpy(last, f->bytes, last_bytes);
	last_prefix = f->bytes[bytes];
	return talk(fd, &m);
}

static int add_route(int fd, int index, size_t bytes, const uint8_t *to, unsigned bits, const uint8_t *by)
{
	struct rtmsg route = { .rtm_family = family_of(bytes), .rtm_dst_len = (uint8_t)bits, .rtm_table = RT_TABLE_MAIN,
		.rtm_protocol = RTPROT_STATIC, .rtm_type = RTN_UNICAST,
		.rtm_scope = by || bytes == 16 ? RT_SCOPE_UNIVERSE : RT_SCOPE_LINK };
	struct message m;

	begin(&m, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &route, sizeof route);
	if (bits)
		attribute(&m, RTA_DST, to, bytes);
	if (by)
		attribute(&m, RTA_GATEWAY, by, bytes);
	attribute(&m, RTA_OIF, &index, 4);
	return talk(fd, &m);
}

/* u8 prefix length, u8 whether by a gateway, destination, gateway (or zeros). */
static int route(int fd, int index, const struct wire_field *f)
{
	size_t bytes = f->length >= 2 && f->length % 2 == 0 ? address_bytes((f->length - 2) / 2) : 0;

	if (!bytes || f->bytes[0] > 8 * bytes)
		return EINVAL;
	const uint8_t *to = f->bytes + 2;
	return add_route(fd, index, bytes, to, f->bytes[0], f->bytes[1] ? to + bytes : NULL);
}

/* The address, then its hardware address: permanent. */
static int neighbour(int fd, int index, const struct wire_field *f)
{
	size_t bytes = f->length > 6 ? address_bytes(f->length - 6) : 0;
	struct message m;

	if (!bytes)
		return EINVAL;
	struct ndmsg one = { .ndm_family = family_of(bytes), .ndm_ifindex = index, .ndm_state = NUD_PERMANENT };
	begin(&m, RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &one, sizeof one);
	attribute(&m, NDA_DST, f->bytes, bytes);
	attribute(&m, NDA_LLADDR, f->bytes + bytes, 6);
	return talk(fd, &m);
}

/* A routed address: the gateway is reached by a route of its own, as no subnet is on the link. */
static int gateway(int fd, int index, const struct wire_field *f)
{
	if (f->length != 4)
		return EINVAL;
	int error = add_route(fd, index, 4, f->bytes, 32, NULL);
	return error ? error : add_route(fd, index, 4, NULL, 0, f->bytes);
}

static int apply(int fd, int index, const struct wire_field *f, const char **why)
{
	switch (f->tag) {
	case TAG_ADDRESS: return *why = "an address cannot be set", add_address(fd, index, f);
	case TAG_GATEWAY: return *why = "the route to the gateway cannot be set", gateway(fd, index, f);
	case TAG_ROUTE: return *why = "a route cannot be set", route(fd, index, f);
	case TAG_NEIGHBOUR: return *why = "a neighbour cannot be set", neighbour(fd, index, f);
	default: return 0;
	}
}

/* IPv6 is off in a guest (boot.c) until an engine gives an address of it. */
static void allow_ipv6(const struct wire_message *frame, const char *name)
{
	struct wire_field f;
	size_t offset = 0;
	char path[64];

	snprintf(path, sizeof path, "/proc/sys/net/ipv6/conf/%s/disable_ipv6", name);
	while (wire_next(frame->payload, frame->length, &offset, &f) == 1)
		if (f.tag == TAG_ADDRESS && f.length == 17)
			write_file(path, "0", 1);
}

/* What the cards are called: as at boot, until NETWORK calls them as the engine does. */
static char cards[MOST_CARDS][IFNAMSIZ] = { "eth0", "eth1", "eth2", "eth3" };

/* The card that the message is about: the first, unless it names another; and what it is to be called. */
static int card_of(const struct wire_message *frame, uint32_t *number, char *name)
{
	struct wire_field f;
	size_t offset = 0;

	*number = 0;
	while (wire_next(frame->payload, frame->length, &offset, &f) == 1) {
		if (f.tag == TAG_CARD && (f.length != 4 || (*number = wire_u32(f.bytes)) >= MOST_CARDS))
			return EINVAL;
		if (f.tag == TAG_CARD_NAME && (!f.length || f.length >= IFNAMSIZ || memchr(f.bytes, 0, f.length)))
			return EINVAL;
		if (f.tag == TAG_CARD_NAME)
			snprintf(name, IFNAMSIZ, "%.*s", (int)f.length, (const char *)f.bytes);
	}
	return 0;
}

static int rename_card(int fd, const char *from, const char *to)
{
	struct ifreq request = { 0 };

	strncpy(request.ifr_name, from, sizeof request.ifr_name - 1);
	strncpy(request.ifr_newname, to, sizeof request.ifr_newname - 1);
	if (!strcmp(from, to) || ioctl(fd, SIOCSIFNAME, &request) == 0)
		return 0;
	say("casemate: %s as %s: %s", from, to, strerror(errno));
	return errno;
}

/* A card that is down gets the engine's name for it. Another that has the name by its place alone makes room: its own
 * message is still to come. */
static int call_card(int fd, uint32_t number, const char *name)
{
	char aside[IFNAMSIZ];
	int error = 0;

	if (!*name || !strcmp(cards[number], name))
		return 0;
	for (uint32_t i = 0; i < MOST_CARDS && !error; i++) {
		int index = strcmp(cards[i], name) ? 0 : (int)if_nametoindex(name);
		if (!index)
			continue;
		snprintf(aside, sizeof aside, "card%u", i);
		error = set_down(fd, index);
		if (!error && !(error = rename_card(fd, name, aside)))
			memcpy(cards[i], aside, sizeof aside);
	}
	if (!error && !(error = rename_card(fd, cards[number], name)))
		snprintf(cards[number], sizeof cards[number], "%s", name);
	return error;
}

/* At boot, where there are several: each is called after the number in its placeholder of an address, in whatever order the
 * kernel found them; and is up, as the only one is. */
void network_order(void)
{
	char name[IFNAMSIZ], between[IFNAMSIZ];
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), count = 0;
	struct ifreq request;

	for (; fd >= 0 && count < MOST_CARDS; count++) {
		snprintf(name, sizeof name, "eth%d", count);
		memset(&request, 0, sizeof request);
		memcpy(request.ifr_name, name, sizeof name);
		if (ioctl(fd, SIOCGIFHWADDR, &request) < 0 || (count == 0 && !if_nametoindex("eth1")))
			break;
		snprintf(between, sizeof between, "card%d", (request.ifr_hwaddr.sa_data[5] & 7) - 1);
		rename_card(fd, name, between);
	}
	for (int i = 0; i < count; i++) {
		snprintf(between, sizeof between, "card%d", i);
		snprintf(name, sizeof name, "eth%d", i);
		rename_card(fd, between, name);
	}
	if (fd >= 0)
		close(fd);
}

static int link_of(const struct wire_message *frame, const uint8_t **mac, uint32_t *mtu, int *any)
{
	struct wire_field f;
	size_t offset = 0;

	while (wire_next(frame->payload, frame->length, &offset, &f) == 1) {
		*any |= f.tag == TAG_MAC || f.tag == TAG_ADDRESS;
		if (f.tag == TAG_MAC)
			*mac = f.bytes;
		if ((f.tag == TAG_MAC && f.length != 6) || (f.tag == TAG_MTU && f.length != 4))
			return EINVAL;
		if (f.tag == TAG_MTU)
			*mtu = wire_u32(f.bytes);
	}
	return 0;
}

/* What the message says of the network, in its order: addresses stand before the routes that need them. Without an
 * address or a hardware address CONFIGURE does nothing, and NETWORK says that there is none. */
int network_set(const struct wire_message *frame, const char **why)
{
	int any = 0;
	const uint8_t *mac = NULL;
	struct wire_field f;
	size_t offset = 0;
	uint32_t mtu = 0;

	*why = "a field of the network is not valid";
	char name[IFNAMSIZ] = "";
	uint32_t number;
	int error = card_of(frame, &number, name);
	if (!error)
		error = link_of(frame, &mac, &mtu, &any);
	int taken_over = frame->kind == KIND_NETWORK;
	if (error || !(any || taken_over))
		return error;
	int index = (int)if_nametoindex(cards[number]);
	*why = "the network device is missing";
	if (!index)
		return ENODEV;
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	if (fd < 0)
		return errno;
	*why = "the link does not come up";
	/* Down first: the address that IPv6 made of the template's hardware address goes with that. */
	error = taken_over ? set_down(fd, index) : 0;
	if (!error && taken_over) {
		*why = "the card cannot be called as the engine's interface";
		error = call_card(fd, number, name);
		allow_ipv6(frame, cards[number]);
	}
	*why = "the link does not come up";
	if (!error && any)
		error = set_link(fd, index, mac, mtu);
	while (!error && wire_next(frame->payload, frame->length, &offset, &f) == 1)
		error = apply(fd, index, &f, why);
	close(fd);
	return error;
}

/* Takes away the address of a rehearsal (rootfs.c); the card's last address takes its routes along. */
void network_forget(void)
{
	struct ifaddrmsg address = { .ifa_family = AF_INET, .ifa_prefixlen = last_prefix,
		.ifa_index = (unsigned)if_nametoindex(card) };
	struct message m;

	if (!last_bytes)
		return;
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	begin(&m, RTM_DELADDR, 0, &address, sizeof address);
	attribute(&m, IFA_LOCAL, last, last_bytes);
	int error = fd < 0 ? errno : talk(fd, &m);
	if (error)
		say("casemate: the rehearsal's address: %s", strerror(error));
	if (fd >= 0)
		close(fd);
	last_bytes = 0;
}
