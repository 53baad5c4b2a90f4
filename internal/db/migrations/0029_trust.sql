-- +goose Up

-- What somebody told us about our security: text and contact are sealed under the outbox key, and staff alone
-- reads them. A report is deleted a year after it was closed.
CREATE TABLE security_report (
    id        {{.Text}} NOT NULL PRIMARY KEY,
    made_at   {{.Int}}  NOT NULL,
    sealed    {{.Blob}} NOT NULL,
    closed_at {{.Int}},
    closed_by {{.Text}} NOT NULL DEFAULT '',
    verdict   {{.Text}} NOT NULL DEFAULT ''
) {{.Clustered}};

CREATE INDEX security_report_age ON security_report (made_at);

-- How many reports came from a source, a MAC of its network, or from all ('total'), in the window that began then.
CREATE TABLE security_report_count (
    source  {{.Blob}} NOT NULL PRIMARY KEY,
    since   {{.Int}}  NOT NULL,
    taken   {{.Int}}  NOT NULL,
    refused {{.Int}}  NOT NULL
) {{.Clustered}};

-- The register of risks. Likelihood and impact go from 1 to 5, before and after the treatment; claims are the ids of
-- the claims that the treatment leans on, with spaces between.
CREATE TABLE risk (
    id                {{.Text}} NOT NULL PRIMARY KEY,
    asset             {{.Text}} NOT NULL,
    threat            {{.Text}} NOT NULL,
    likelihood_before {{.Int}}  NOT NULL,
    impact_before     {{.Int}}  NOT NULL,
    likelihood_after  {{.Int}}  NOT NULL,
    impact_after      {{.Int}}  NOT NULL,
    owner             {{.Text}} NOT NULL,
    treatment         {{.Text}} NOT NULL,
    measures          {{.Text}} NOT NULL,
    claims            {{.Text}} NOT NULL,
    review_at         {{.Int}}  NOT NULL,
    reviewed_at       {{.Int}},
    reviewed_by       {{.Text}} NOT NULL DEFAULT ''
) {{.Clustered}};

-- What the operator decided about a control of the statement of applicability, where that is not the product's default.
CREATE TABLE applicability (
    control       {{.Text}} NOT NULL PRIMARY KEY,
    applies       {{.Int}}  NOT NULL,
    justification {{.Text}} NOT NULL,
    decided_at    {{.Int}}  NOT NULL,
    decided_by    {{.Text}} NOT NULL
) {{.Clustered}};

-- What is to become better, until when, and by whom. risk may be empty; state is open, done or dropped.
CREATE TABLE improvement (
    id       {{.Text}} NOT NULL PRIMARY KEY,
    action   {{.Text}} NOT NULL,
    owner    {{.Text}} NOT NULL,
    risk     {{.Text}} NOT NULL,
    due_at   {{.Int}}  NOT NULL,
    state    {{.Text}} NOT NULL,
    made_at  {{.Int}}  NOT NULL,
    ended_at {{.Int}},
    remark   {{.Text}} NOT NULL DEFAULT ''
) {{.Clustered}};
