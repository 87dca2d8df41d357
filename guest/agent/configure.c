/* What makes a clone itself: fresh randomness first, then clock, host name, network. */
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

enum { SEED_MIN = 32, SEED_MAX = 512 };

/* Mixed in and counted as entropy, then RNDRESEEDCRNG, which also makes each cpu throw away what it had drawn in
 * advance (drivers/char/random.c: the generation of base_crng): without it two clones would draw the same numbers. */
static int reseed(const uint8_t *seed, size_t length)
{
	struct {
		int entropy_count, buf_size;
		uint8_t buf[SEED_MAX];
	} pool;
	int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return errno;
	pool.entropy_count = (int)(length * 8);
	pool.buf_size = (int)length;
	memcpy(pool.buf, seed, length);
	int error = 0;
	if (ioctl(fd, RNDADDENTROPY, &pool) < 0 || ioctl(fd, RNDRESEEDCRNG) < 0)
		error = errno;
	close(fd);
	explicit_bzero(&pool, sizeof pool);
	return error;
}

static int set_clock(uint64_t nanoseconds)
{
	struct timespec now = { .tv_sec = (time_t)(nanoseconds / 1000000000), .tv_nsec = (long)(nanoseconds % 1000000000) };

	return clock_settime(CLOCK_REALTIME, &now) < 0 ? errno : 0;
}

static int talk(int fd, struct nlmsghdr *message)
{
	struct {
		struct nlmsghdr head;
		struct nlmsgerr error;
		uint8_t rest[256];
	} answer;

	message->nlmsg_flags |= NLM_F_REQUEST | NLM_F_ACK;
	if (send(fd, message, message->nlmsg_len, 0) < 0)
		return errno;
	if (recv(fd, &answer, sizeof answer, 0) < (ssize_t)sizeof answer.head)
		return EIO;
	return answer.head.nlmsg_type == NLMSG_ERROR ? -answer.error.error : EIO;
}

static void attribute(struct nlmsghdr *message, uint16_t type, const void *data, size_t length)
{
	struct rtattr *one = (struct rtattr *)((char *)message + NLMSG_ALIGN(message->nlmsg_len));

	one->rta_type = type;
	one->rta_len = (uint16_t)RTA_LENGTH(length);
	memcpy(RTA_DATA(one), data, length);
	message->nlmsg_len = NLMSG_ALIGN(message->nlmsg_len) + RTA_ALIGN(one->rta_len);
}

struct network {
	uint8_t mac[6], address[4], gateway[4];
	int has_mac, has_address, has_gateway, prefix;
	uint32_t mtu;
};

static int link_up(int fd, int index, const struct network *network)
{
	struct {
		struct nlmsghdr head;
		struct ifinfomsg link;
		uint8_t room[64];
	} request = { .head = { .nlmsg_len = NLMSG_LENGTH(sizeof request.link), .nlmsg_type = RTM_NEWLINK },
		.link = { .ifi_index = index, .ifi_flags = IFF_UP, .ifi_change = IFF_UP } };

	if (network->has_mac)
		attribute(&request.head, IFLA_ADDRESS, network->mac, 6);
	if (network->mtu)
		attribute(&request.head, IFLA_MTU, &network->mtu, 4);
	return talk(fd, &request.head);
}

static int add_address(int fd, int index, const struct network *network)
{
	struct {
		struct nlmsghdr head;
		struct ifaddrmsg address;
		uint8_t room[64];
	} request = { .head = { .nlmsg_len = NLMSG_LENGTH(sizeof request.address), .nlmsg_type = RTM_NEWADDR,
			      .nlmsg_flags = NLM_F_CREATE },
		.address = { .ifa_family = AF_INET, .ifa_prefixlen = (uint8_t)network->prefix,
			.ifa_index = (unsigned)index } };

	attribute(&request.head, IFA_LOCAL, network->address, 4);
	attribute(&request.head, IFA_ADDRESS, network->address, 4);
	return talk(fd, &request.head);
}

static int add_route(int fd, int index, const uint8_t *to, int bits, const uint8_t *by)
{
	struct {
		struct nlmsghdr head;
		struct rtmsg route;
		uint8_t room[64];
	} request = { .head = { .nlmsg_len = NLMSG_LENGTH(sizeof request.route), .nlmsg_type = RTM_NEWROUTE,
			      .nlmsg_flags = NLM_F_CREATE | NLM_F_REPLACE },
		.route = { .rtm_family = AF_INET, .rtm_dst_len = (uint8_t)bits, .rtm_table = RT_TABLE_MAIN,
			.rtm_protocol = RTPROT_STATIC, .rtm_type = RTN_UNICAST,
			.rtm_scope = by ? RT_SCOPE_UNIVERSE : RT_SCOPE_LINK } };

	if (bits)
		attribute(&request.head, RTA_DST, to, 4);
	if (by)
		attribute(&request.head, RTA_GATEWAY, by, 4);
	attribute(&request.head, RTA_OIF, &index, 4);
	return talk(fd, &request.head);
}

/* A routed address: the gateway is reached by a route of its own, as no subnet is on the link. */
static int set_network(const struct network *network, const char **why)
{
	int index = (int)if_nametoindex("eth0"), error;

	*why = "the network device is missing";
	if (!index)
		return ENODEV;
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	if (fd < 0)
		return errno;
	*why = "the link does not come up";
	error = link_up(fd, index, network);
	if (!error && network->has_address) {
		*why = "the address cannot be set";
		error = add_address(fd, index, network);
	}
	if (!error && network->has_gateway) {
		*why = "the route to the gateway cannot be set";
		error = add_route(fd, index, network->gateway, 32, NULL);
		if (!error)
			error = add_route(fd, index, NULL, 0, network->gateway);
	}
	close(fd);
	return error;
}

static int take(const struct wire_field *field, struct network *network, uint64_t *clock, int *seeded, const char **why)
{
	switch (field->tag) {
	case TAG_SEED:
		*why = "randomness cannot be set";
		if (field->length < SEED_MIN || field->length > SEED_MAX)
			return EINVAL;
		*seeded = 1;
		return reseed(field->bytes, field->length);
	case TAG_CLOCK:
		*clock = field->length == 8 ? wire_u64(field->bytes) : 0;
		return *clock ? 0 : EINVAL;
	case TAG_HOSTNAME:
		*why = "the host name cannot be set";
		if (field->length > 64)
			return EINVAL;
		return sethostname((const char *)field->bytes, field->length) < 0 ? errno : 0;
	case TAG_MAC:
		network->has_mac = 1;
		return field->length == 6 ? (memcpy(network->mac, field->bytes, 6), 0) : EINVAL;
	case TAG_ADDRESS:
		if (field->length != 5 || field->bytes[4] > 32)
			return EINVAL;
		network->has_address = 1;
		network->prefix = field->bytes[4];
		memcpy(network->address, field->bytes, 4);
		return 0;
	case TAG_GATEWAY:
		network->has_gateway = 1;
		return field->length == 4 ? (memcpy(network->gateway, field->bytes, 4), 0) : EINVAL;
	case TAG_MTU:
		network->mtu = field->length == 4 ? wire_u32(field->bytes) : 0;
		return 0;
	default:
		return EINVAL;
	}
}

int configure(const struct wire_message *frame, const char **why)
{
	struct network network = { 0 };
	struct wire_field field;
	size_t offset = 0;
	uint64_t clock = 0;
	int more, error, seeded = 0;

	while ((more = wire_next(frame->payload, frame->length, &offset, &field)) == 1) {
		*why = "a field is not valid";
		error = take(&field, &network, &clock, &seeded, why);
		if (error)
			return error;
	}
	*why = "a seed and a clock are required";
	if (more || !seeded || !clock)
		return EINVAL;
	*why = "the clock cannot be set";
	error = set_clock(clock);
	if (!error && (network.has_address || network.has_mac))
		error = set_network(&network, why);
	return error;
}
