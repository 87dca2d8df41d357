"""Policy at work: documents in the store, workloads as endpoints, referrals, quarantines, walls. No rules' meaning.

What rules mean is :mod:`casemate.policy`'s; what the kernel holds is hostd's. Here both are kept together.
"""
